/* ck.h - runner of the kernel checks: cases, guarded buffers, options.
 *
 *   check_kernels [--isa=LEVEL] [--require=LEVEL] [--filter=TEXT] [--seed=N]
 *
 * --isa masks instruction sets; rows above it count as skipped. --require fails when this
 * machine (or --isa) cannot run the rows of that level, so that a CI machine with AMX cannot
 * silently stop checking it. Every buffer that a kernel sees lies between guards filled with
 * 0xA5, and outputs start out as 0xA5, so that a byte written beside the contract shows.
 * SPDX-License-Identifier: MIT */
#ifndef CK_H
#define CK_H

#include "base/isa.h"
#include "base/rng.h"
#include "base/status.h"

typedef struct ck {
    uint32_t isa;       /* what may run: machine and --isa */
    const char *filter; /* part of a case name, or NULL */
    uint64_t seed;
    int n_passed, n_failed, n_skipped;
    const char *name; /* of the running case */
    int n_complaints; /* of the running case */
} ck;

/* A case is one table row or one property. ck_begin is false when the filter excludes it;
 * ck_end prints its line. */
bool ck_begin(ck *t, const char *name);
void ck_end(ck *t);
void ck_skip(ck *t, const char *name, const char *why);
/* Turns the running case red; the first few complaints are printed. */
void ck_complain(ck *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
#define ck_true(t, what)                                                                       \
    ((what) ? (void)0 : ck_complain(t, "%s:%d: %s", __FILE__, __LINE__, #what))

/* Bytes between two guards, all 0xA5 at first, 64-byte aligned. Stops the program when out of
 * memory. */
typedef struct ck_buf {
    uint8_t *block;
    size_t n_bytes;
    void *data;
} ck_buf;
ck_buf ck_buf_new(size_t n_bytes);
void ck_buf_free(ck_buf *b);
/* Fills the data with 0xA5 again. */
void ck_buf_poison(ck_buf *b);
bool ck_buf_intact(const ck_buf *b);

/* Uniform in lo..hi. */
int ck_int(fl_rng *rng, int lo, int hi);

void check_layout(ck *t);
void check_gemm(ck *t);
void check_gemm_f32(ck *t);
void check_quantize(ck *t);
void check_transform(ck *t);
void check_gemm_bf16(ck *t);
void check_flatten(ck *t);
void check_attention(ck *t);
void check_attention_codes(ck *t);
void check_kv_codec(ck *t);
void check_rowops(ck *t);

#endif
