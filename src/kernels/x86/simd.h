/* simd.h - two helpers of all vector kernels. SPDX-License-Identifier: MIT */
#ifndef FL_KERNELS_X86_SIMD_H
#define FL_KERNELS_X86_SIMD_H

#include <immintrin.h>

/* For functions whose block sizes are constant arguments: one body, one copy per size. */
#define FL_INLINE static inline __attribute__((always_inline))

/* Pins v to a register here. GCC 12 otherwise moves all products of a block before all
 * additions and spills the sums of the innermost loop. */
#define FL_KEEP(v) __asm__("" : "+v"(v))
/* The same, and neither dropped nor merged with another: for loops that compute nothing. */
#define FL_KEEP_EACH(v) __asm__ volatile("" : "+v"(v))

#endif
