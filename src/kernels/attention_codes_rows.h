/* attention_codes_rows.h - what the rows of attention_codes.c share: the layout of prepared
 * queries and of the work memory, a page's codes one per byte, its scales and zeros.
 * SPDX-License-Identifier: MIT */
#ifndef FL_KERNELS_ATTENTION_CODES_ROWS_H
#define FL_KERNELS_ATTENTION_CODES_ROWS_H

#include "kernels/attention_codes.h"
#include "kernels/kv_codec_rows.h"

fl_attention_prepare_fn fl__attention_prepare_ref, fl__attention_prepare_avx2,
    fl__attention_prepare_avx512vnni, fl__attention_prepare_amx;
fl_attention_codes_fn fl__attention_codes_ref, fl__attention_codes_avx2,
    fl__attention_codes_avx512vnni, fl__attention_codes_amx;

enum {
    FL_CODES_ROWS = 16,     /* rows of a block at most */
    FL_CODES_KEYS = FL_CODES_PAGES * FL_KV_PAGE,
    FL_CODES_SUMS = 3,      /* of a row and lane at most: over parts of X */
    FL_CODES_TERM_BYTES = 4 /* of a prepared number, in any row's layout */
};

/* Prepared queries: a head per row, then, 64-byte aligned, the rows' numbers, each row
 * FL_CODES_TERM_BYTES * fl__codes_terms(D) bytes, or less, as the row of the table likes. */
typedef struct fl_codes_head {
    float step;         /* times the attention's scale */
    int32_t sum_h, sum_l; /* over the row's H and L */
    int32_t unused;
} fl_codes_head;

/* Terms rounded up to a whole tile. */
static inline int fl__codes_terms(int n)
{
    return (n + 63) / 64 * 64;
}

static inline size_t fl__codes_heads_bytes(int n_rows)
{
    return ((size_t)n_rows * sizeof(fl_codes_head) + 63) / 64 * 64;
}

/* Work memory. codes: four terms of a lane per word, [terms / 4][lanes]: of a page of keys with
 * 64 lanes, of all pages' values, one after the other, with fl__attention_ld(D). */
typedef struct fl_codes_work {
    uint8_t *k;    /* [FL_CODES_PAGES][terms of D / 4][64][4] */
    uint8_t *v;    /* [FL_CODES_PAGES * 64 / 4][ld][4] */
    uint8_t *w; /* [2][FL_CODES_ROWS][FL_CODES_KEYS] prepared, as the row of the table likes */
    float *s;   /* [2][FL_CODES_ROWS][FL_CODES_KEYS] */
    float *k_scale, *v_scale; /* [FL_CODES_KEYS] */
    int32_t *k_zero, *v_zero; /* [FL_CODES_KEYS] */
    int32_t *sums; /* [FL_CODES_ROWS][FL_CODES_SUMS][lanes], as the row of the table likes */
} fl_codes_work;

static inline size_t fl__codes_page_bytes(int D)
{
    return (size_t)fl__codes_terms(D) * FL_KV_PAGE;
}

static inline fl_codes_work fl__codes_work(void *work, int D)
{
    const size_t codes = FL_CODES_PAGES * fl__codes_page_bytes(D);
    uint8_t *at = work;
    fl_codes_work w = {.k = at, .v = at + codes, .w = at + 2 * codes};
    w.s = (float *)(void *)(w.w + 2 * FL_CODES_ROWS * FL_CODES_KEYS * FL_CODES_TERM_BYTES);
    w.k_scale = w.s + 2 * FL_CODES_ROWS * FL_CODES_KEYS;
    w.v_scale = w.k_scale + FL_CODES_KEYS;
    w.k_zero = (int32_t *)(void *)(w.v_scale + FL_CODES_KEYS);
    w.v_zero = w.k_zero + FL_CODES_KEYS;
    w.sums = w.v_zero + FL_CODES_KEYS;
    return w;
}

FL_KV_INLINE void fl__codes_spread_bits(uint8_t *out, int ld, const uint8_t *block,
                                        fl_kv_side side, int D, int bits)
{
    const int n = fl__kv_terms(side, D);
    for (int i = 0; i < n; i += 4)
        fl__kv_four((uint32_t *)(void *)out + i / 4 * ld, block, side, D, bits, i);
}

/* A block's codes, one per byte; `bits` a constant in each copy of the loops. Lanes and terms
 * that the block has not got keep what they held. */
static inline void fl__codes_spread(uint8_t *out, int ld, const uint8_t *block, fl_kv_side side,
                                    int D, int bits)
{
    switch (bits) {
    case 8: fl__codes_spread_bits(out, ld, block, side, D, 8); break;
    case 4: fl__codes_spread_bits(out, ld, block, side, D, 4); break;
    case 3: fl__codes_spread_bits(out, ld, block, side, D, 3); break;
    default: fl__codes_spread_bits(out, ld, block, side, D, 2); break;
    }
}

/* Keys of the piece that row r sees. Beyond what the last row sees, blocks hold whatever they
 * hold. */
static inline int fl__codes_seen(const fl_attention_codes *a, int r)
{
    const int n = a->n_keys + r / a->group, most = a->n_pages * FL_KV_PAGE;
    return n < 0 ? 0 : n < most ? n : most;
}

#endif
