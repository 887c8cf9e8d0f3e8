# Flatiron - what people type. The build itself is in CMakeLists.txt, longer steps in tools/.
BUILD ?= build
PREFIX ?= /usr/local
JOBS ?= $(shell nproc)
FUZZ_SECONDS ?= 60
FUZZ_TARGETS = $(basename $(notdir $(wildcard tests/fuzz/fuzz_*.c)))
# What `make asan` runs: all but the tests that evaluate whole models.
ASAN_LABELS ?= unit|check|fuzz
# More options of the configure step, e.g. CMAKE_FLAGS=-DCMAKE_C_COMPILER=clang
CMAKE_FLAGS ?=

configure = cmake -S . -B $(1) -G Ninja $(2) $(CMAKE_FLAGS) >/dev/null
compile = cmake --build $(1) --parallel $(JOBS)
gpu = $(MAKE) --no-print-directory -f tools/cuda.mk -j$(JOBS)

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

deps: ## install the Debian packages that are missing (apt-get, sudo unless root)
	@tools/deps.sh build

build: deps ## the program, build/flatiron, the libraries and the tests
	@$(call configure,$(BUILD))
	@$(call compile,$(BUILD))

check: build ## build and run all tests
	@tools/run_tests.sh $(BUILD)

demo: build ## quantise the embedded model, compare with float and RTN, generate text
	@tools/demo.sh $(BUILD)

bench: build ## rates of the kernels on this machine (ARGS=--json)
	@$(BUILD)/flatiron bench kernels $(ARGS)

asan: deps ## unit, kernel and parser tests under ASan and UBSan
	@$(call configure,build-asan,-DFL_SANITIZE=address$(comma)undefined)
	@$(call compile,build-asan)
	@tools/run_tests.sh build-asan -L '$(ASAN_LABELS)'

fuzz: ## each parser under libFuzzer for FUZZ_SECONDS=60
	@tools/deps.sh dev
	@$(call configure,build-fuzz,-DCMAKE_C_COMPILER=clang -DFL_FUZZ=ON \
	  -DFL_SANITIZE=address$(comma)undefined$(comma)fuzzer-no-link)
	@$(call compile,build-fuzz) --target $(FUZZ_TARGETS)
	@tools/fuzz.sh build-fuzz $(FUZZ_SECONDS)

style: ## rules that compilers do not check
	@tools/style.py --self-test
	@tools/style.py

headers: build ## the public header alone, the exported symbols, an installed copy
	@tools/check_headers.sh $(BUILD)

mutate: build ## planted faults (tools/mutations.txt) must turn tests red
	@tools/mutate.sh

man: build ## docs/flatiron.1 from the program's --help
	@tools/man.sh $(BUILD)/flatiron >docs/flatiron.1.tmp
	@mv docs/flatiron.1.tmp docs/flatiron.1

install: build ## program, library, header and pkg-config file under PREFIX=/usr/local
	@$(call configure,$(BUILD),-DCMAKE_INSTALL_PREFIX=$(PREFIX))
	@DESTDIR=$(DESTDIR) cmake --install $(BUILD)

cuda: ## the GPU kernels and their checks, build-cuda/ (needs nvcc)
	@$(gpu) $@

cuda-check: ## the GPU kernels against references (needs nvcc and an H100 or H200)
	@$(gpu) $@

cuda-bench: ## rates of the GPU kernels beside cuBLASLt's
	@$(gpu) $@

clean: ## remove all build directories
	rm -rf build build-*

comma := ,
.NOTPARALLEL:
.PHONY: help deps build check demo bench asan fuzz style headers mutate man install clean \
  cuda cuda-check cuda-bench
