# The GPU engine: nvcc alone, into build-cuda/; included by the Makefile.
NVCC ?= /usr/local/cuda/bin/nvcc
CUDA_LIB ?= /usr/local/cuda/lib64
CUDA_BUILD ?= build-cuda
NVCC_FLAGS ?= -O3 -gencode=arch=compute_90a,code=sm_90a
nvcc_all = $(NVCC) $(NVCC_FLAGS) -Isrc -Iinclude -Itests/cuda -MMD -Xcompiler -Wall

cuda_objects = $(patsubst %,$(CUDA_BUILD)/%.o, $(wildcard src/cuda/*.cu src/cuda/*.c) \
  src/base/status.c)
check_gemm_objects = $(patsubst %,$(CUDA_BUILD)/%.o, $(wildcard tests/cuda/*_gemm_cuda.cu))
check_attention_objects = $(patsubst %,$(CUDA_BUILD)/%.o, \
  tests/cuda/check_attention_cuda.cu src/kernels/ref/kv_codec_ref.c)

cuda: $(CUDA_BUILD)/check_gemm $(CUDA_BUILD)/check_attention ## the GPU kernels and their check (needs nvcc)

$(CUDA_BUILD)/%.cu.o: %.cu
	@mkdir -p $(dir $@)
	$(nvcc_all) -c $< -o $@

$(CUDA_BUILD)/%.c.o: %.c
	@mkdir -p $(dir $@)
	$(CC) -std=c11 -O2 -ffp-contract=off -Wall -Wextra -Isrc -Iinclude -MMD -c $< -o $@

$(CUDA_BUILD)/check_gemm: $(cuda_objects) $(check_gemm_objects)
	$(NVCC) $(NVCC_FLAGS) $^ -o $@ -cudart static -L$(CUDA_LIB) -lcublasLt \
	  -Xlinker -rpath=$(CUDA_LIB)

$(CUDA_BUILD)/check_attention: $(cuda_objects) $(check_attention_objects)
	$(NVCC) $(NVCC_FLAGS) $^ -o $@ -cudart static -L$(CUDA_LIB) -lcublasLt \
	  -Xlinker -rpath=$(CUDA_LIB)

-include $(shell find $(CUDA_BUILD) -name '*.d' 2>/dev/null)
.PHONY: cuda
