# The GPU kernels and their checks: nvcc alone, into build-cuda/. Called by the Makefile
# (make cuda, cuda-check, cuda-bench); CMake knows nothing of it, and the CPU build needs no CUDA.
NVCC ?= $(shell command -v nvcc || echo /usr/local/cuda/bin/nvcc)
CUDA_LIB ?= /usr/local/cuda/lib64
CUDA_BUILD ?= build-cuda
NVCC_FLAGS ?= -O3 -gencode=arch=compute_90a,code=sm_90a

CUDA_INCLUDE ?= $(dir $(NVCC))../include

nvcc_all = $(NVCC) $(NVCC_FLAGS) -Isrc -Iinclude -Itests/cuda -MMD \
  -Xcompiler -Wall,-fPIC,-fvisibility=hidden
cc_all = $(CC) -std=c11 -O2 -fPIC -fvisibility=hidden -ffp-contract=off -Wall -Wextra -Wshadow \
  -Wstrict-prototypes -Wmissing-prototypes -D_GNU_SOURCE -Isrc -Iinclude -isystem $(CUDA_INCLUDE) -MMD
objects = $(patsubst %,$(CUDA_BUILD)/%.o,$(1))

cuda_objects = $(call objects,$(wildcard src/cuda/*.cu src/cuda/*.c) src/base/status.c \
  src/base/mem.c)
plugin = $(CUDA_BUILD)/libflatiron-cuda.so
gemm_objects = $(call objects,$(wildcard tests/cuda/*_gemm_cuda.cu))
transform_objects = $(call objects,$(wildcard tests/cuda/*_transform_cuda.cu) \
  tests/cuda/check_rowops_cuda.cu src/kernels/ref/transform_ref.c \
  src/kernels/ref/quantize_ref.c src/base/float16.c)
attention_objects = $(call objects,$(wildcard tests/cuda/*_attention_cuda.cu) \
  src/kernels/ref/kv_codec_ref.c)
programs = $(addprefix $(CUDA_BUILD)/,check_gemm check_transform check_attention)

ifneq ($(shell command -v $(NVCC)),)
cuda: $(programs) $(plugin)
else
cuda:
	@echo "make cuda: $(NVCC) not found: the GPU kernels need nvcc; name one by NVCC=" >&2
	@exit 1
endif

cuda-check: cuda
	@tools/cuda_run.sh --check $(programs)

cuda-bench: cuda
	@tools/cuda_run.sh --bench $(programs)

$(CUDA_BUILD)/check_gemm: $(cuda_objects) $(gemm_objects)
$(CUDA_BUILD)/check_transform: $(cuda_objects) $(transform_objects)
$(CUDA_BUILD)/check_attention: $(cuda_objects) $(attention_objects)
$(programs):
	$(NVCC) $(NVCC_FLAGS) $^ -o $@ -cudart static -L$(CUDA_LIB) -lcublasLt \
	  -Xlinker -rpath=$(CUDA_LIB)

# What libflatiron loads for --device cuda: one symbol, fl_cuda_backend.
$(plugin): $(cuda_objects)
	$(NVCC) $(NVCC_FLAGS) -shared $^ -o $@ -cudart static -L$(CUDA_LIB) -lcublasLt \
	  -Xlinker -rpath=$(CUDA_LIB) -Xlinker --exclude-libs=ALL -Xlinker --no-undefined

$(CUDA_BUILD)/%.cu.o: %.cu
	@mkdir -p $(dir $@)
	$(nvcc_all) -c $< -o $@

$(CUDA_BUILD)/%.c.o: %.c
	@mkdir -p $(dir $@)
	$(cc_all) -c $< -o $@

# The references' fmaf as one instruction: a check of a thousand rows in seconds.
$(CUDA_BUILD)/src/kernels/ref/%.c.o: src/kernels/ref/%.c
	@mkdir -p $(dir $@)
	$(cc_all) -mfma -c $< -o $@

-include $(shell find $(CUDA_BUILD) -name '*.d' 2>/dev/null)
.PHONY: cuda cuda-check cuda-bench
.DEFAULT_GOAL := cuda
