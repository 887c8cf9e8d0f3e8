/* launch.h - launches that overlap with the end of the kernel before them in the stream
 * (programmatic dependent launch).
 *
 * A kernel launched by launch_after may start before its predecessor has ended: every thread
 * of it must pass wait_previous before it reads what other kernels write or writes what they
 * read, and every CTA must pass it before it ends, or the order of the chain is lost.
 * SPDX-License-Identifier: MIT */
#ifndef FL_CUDA_LAUNCH_H
#define FL_CUDA_LAUNCH_H

#include "cuda/sm90.h"

#include <cuda_runtime.h>

/* All kernels before this one have ended and what they wrote is there. */
DEV void wait_previous(void)
{
    asm volatile("griddepcontrol.wait;" ::: "memory");
}

/* The next kernel's CTAs may start once all of this one have come here, or ended. */
DEV void launch_next(void)
{
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

/* Dynamic shared memory that any kernel may ask for; the limit is the same for every launch,
 * since graphs keep the kernel and not the limit. */
enum { LAUNCH_MAX_BYTES = 224 << 10 };

/* In clusters of `parts` CTAs. */
template <class A>
static inline cudaError_t launch_parts(void (*kernel)(A), dim3 grid, int parts, int n_threads,
                                       int n_bytes, cudaStream_t stream, const A &args)
{
    cudaLaunchAttribute attributes[2];
    cudaLaunchConfig_t config = {};
    if (n_bytes > 0) {
        const cudaError_t e =
            cudaFuncSetAttribute((const void *)kernel,
                                 cudaFuncAttributeMaxDynamicSharedMemorySize, LAUNCH_MAX_BYTES);
        if (e != cudaSuccess) return e;
    }
    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = 1;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim.x = (unsigned)parts;
    attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
    config.gridDim = grid;
    config.blockDim = dim3((unsigned)n_threads);
    config.dynamicSmemBytes = (size_t)n_bytes;
    config.stream = stream;
    config.attrs = attributes;
    config.numAttrs = parts > 1 ? 2 : 1;
    return cudaLaunchKernelEx(&config, kernel, args);
}

template <class A>
static inline cudaError_t launch_after(void (*kernel)(A), dim3 grid, int n_threads, int n_bytes,
                                       cudaStream_t stream, const A &args)
{
    return launch_parts(kernel, grid, 1, n_threads, n_bytes, stream, args);
}

#endif
