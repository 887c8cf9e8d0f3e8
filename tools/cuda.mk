# The GPU kernels and their checks: nvcc alone, into build-cuda/. Called by the Makefile
# (make cuda, cuda-check, cuda-bench); CMake knows nothing of it, and the CPU build needs no CUDA.
NVCC ?= $(shell command -v nvcc || echo /usr/local/cuda/bin/nvcc)
CUDA_LIB ?= /usr/local/cuda/lib64
CUDA_BUILD ?= build-cuda
NVCC_FLAGS ?= -O3

CUDA_INCLUDE ?= $(dir $(NVCC))../include

# Which machine code a file becomes. Files of `portable` are for Ampere and Ada too, the others
# for Hopper alone, whose instructions they use; a launch fails where a GPU has no code of it.
hopper = -gencode=arch=compute_90a,code=sm_90a
older = $(foreach a,80 86 89,-gencode=arch=compute_$(a),code=sm_$(a))
portable = $(patsubst %,src/cuda/%.cu,attention_simple engine_kernels gemm_s4_sm80 tensor_map \
  transform_any weight_load)
arch = $(hopper) $(if $(filter $(portable),$(1)),$(older))

nvcc_all = $(NVCC) $(NVCC_FLAGS) $(call arch,$<) -Isrc -Iinclude -Itests/cuda -MMD -MP \
  -Xcompiler -Wall,-fPIC,-fvisibility=hidden
cc_all = $(CC) -std=c11 -O2 -fPIC -fvisibility=hidden -ffp-contract=off -Wall -Wextra -Wshadow \
  -Wstrict-prototypes -Wmissing-prototypes -D_GNU_SOURCE -Isrc -Iinclude -MMD -MP \
  -isystem $(CUDA_INCLUDE)
objects = $(patsubst %,$(CUDA_BUILD)/%.o,$(1))

cuda_objects = $(call objects,$(wildcard src/cuda/*.cu src/cuda/*.c) src/base/status.c \
  src/base/mem.c src/base/numa.c)
plugin = $(CUDA_BUILD)/libflatiron-cuda.so
gemm_objects = $(call objects,$(wildcard tests/cuda/*_gemm_cuda.cu))
transform_objects = $(call objects,$(wildcard tests/cuda/*_transform_cuda.cu) \
  tests/cuda/check_rowops_cuda.cu src/kernels/ref/transform_ref.c \
  src/kernels/ref/quantize_ref.c src/base/float16.c)
attention_objects = $(call objects,$(wildcard tests/cuda/*_attention_cuda.cu) \
  src/kernels/ref/kv_codec_ref.c)
engine_objects = $(call objects,tests/cuda/check_engine_cuda.cu)
programs = $(addprefix $(CUDA_BUILD)/,check_gemm check_transform check_attention check_engine)

ifneq ($(shell command -v $(NVCC)),)
cuda: $(programs) $(plugin)
else
cuda:
	@echo "make cuda: $(NVCC) not found: the GPU kernels need nvcc; name one by NVCC=" >&2
	@exit 1
endif

cuda-check: cuda
	@tools/cuda_run.sh --check $(programs) tools/cuda_engine.sh

cuda-bench: cuda
	@tools/cuda_run.sh --bench $(programs) tools/cuda_engine.sh

$(CUDA_BUILD)/check_gemm: $(cuda_objects) $(gemm_objects)
$(CUDA_BUILD)/check_transform: $(cuda_objects) $(transform_objects)
$(CUDA_BUILD)/check_attention: $(cuda_objects) $(attention_objects)
$(CUDA_BUILD)/check_engine: $(cuda_objects) $(engine_objects)
$(programs):
	$(NVCC) $(NVCC_FLAGS) $(hopper) $^ -o $@ -cudart static -L$(CUDA_LIB) -lcublasLt \
	  -Xlinker -rpath=$(CUDA_LIB)

# What libflatiron loads for --device cuda: one symbol, fl_cuda_backend.
$(plugin): $(cuda_objects)
	$(NVCC) $(NVCC_FLAGS) $(hopper) -shared $^ -o $@ -cudart static -L$(CUDA_LIB) -lcublasLt \
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
