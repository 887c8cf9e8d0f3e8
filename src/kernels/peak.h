/* peak.h - what the machine itself allows: int8 products from registers, bytes streamed.
 *
 * The bench holds kernels against these, measured in the same run on the same threads.
 * SPDX-License-Identifier: MIT */
#ifndef FL_KERNELS_PEAK_H
#define FL_KERNELS_PEAK_H

#include <stddef.h>
#include <stdint.h>

/* n_rounds rounds of integer multiply-add on registers, no loads; a round is n_ops operations
 * (2 per product). */
typedef struct fl_peak_kernel {
    const char *name;
    uint32_t isa;
    double n_ops;
    void (*run)(int64_t n_rounds);
} fl_peak_kernel;
extern const fl_peak_kernel fl__peak_kernels[]; /* best first, plain C last */
extern const int fl__n_peak_kernels;
const fl_peak_kernel *fl__peak_select(uint32_t isa);

/* Reads n_bytes (a multiple of 64, 64-byte aligned) once, in order. The result depends on all
 * of them, so that nothing is left out. */
typedef uint64_t fl_read_fn(const void *data, size_t n_bytes);
fl_read_fn *fl__read_select(uint32_t isa);

fl_read_fn fl__read_ref, fl__read_avx2;
void fl__peak_ref(int64_t n_rounds);
void fl__peak_avx2(int64_t n_rounds);
void fl__peak_avxvnni(int64_t n_rounds);
void fl__peak_avx512vnni(int64_t n_rounds);
void fl__peak_amx(int64_t n_rounds);

#endif
