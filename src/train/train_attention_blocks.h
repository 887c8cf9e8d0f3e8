/* train_attention_blocks.h - the matrix products inside one head of one window.
 *
 * A head's queries are taken in blocks of FL_ATTENTION_BLOCK; block b sees keys 0..L-1, L up to
 * its last query. Three kinds of product, each in float32 (library SGEMM) or with operands
 * packed as bfloat16 in the thread's scratch:
 *     scores   to[m, L] = x_b y^T      x y = q k or dout v
 *     mix      to[m, D] = w y          w y = p v or ds k
 *     spread   to[L, D] (+)= w^T x_b   w x = p dout or ds q
 * SPDX-License-Identifier: MIT */
#ifndef FL_TRAIN_TRAIN_ATTENTION_BLOCKS_H
#define FL_TRAIN_TRAIN_ATTENTION_BLOCKS_H

#include "base/exec.h"
#include "base/status.h"
#include "train/train_rows.h"

enum { FL_ATTENTION_BLOCK = 128 };

typedef struct fl_attention_blocks fl_attention_blocks;

fl_status fl__attention_blocks_new(fl_attention_blocks **out, const fl_train_rows *rows,
                                   const fl_exec *ex, int T, int H, int G, int D, bool bf16,
                                   fl_err *err);
void fl__attention_blocks_free(fl_attention_blocks **blocks);

/* q and dout: rows of H * D; k and v: rows of G * D; each at the window's first row and the
 * head's first column. */
typedef struct fl_attention_head {
    const float *q, *k, *v;
    const float *dout; /* NULL: forward only */
    int thread;
} fl_attention_head;

/* One block of queries: q0 its first, m how many, L = q0 + m. */
typedef struct fl_attention_block {
    int q0, m, L;
} fl_attention_block;

/* A thread's own scratch: p, and ds for backward, [FL_ATTENTION_BLOCK, ld] each. */
int fl__attention_scratch_ld(const fl_attention_blocks *blocks);
float *fl__attention_scratch_p(const fl_attention_blocks *blocks, int thread);
float *fl__attention_scratch_ds(const fl_attention_blocks *blocks, int thread);

/* Before anything else of a head; the thread's scratch then belongs to it. */
void fl__attention_head_begin(fl_attention_blocks *blocks, const fl_attention_head *head);

fl_status fl__attention_scores(fl_attention_blocks *blocks, const fl_attention_head *head,
                               const fl_attention_block *block);
/* dout v^T into the scratch ds. */
fl_status fl__attention_scores_grad(fl_attention_blocks *blocks, const fl_attention_head *head,
                                    const fl_attention_block *block);
/* out: the block's first row, rows of H * D; y: head->v or head->k. */
fl_status fl__attention_mix_p(fl_attention_blocks *blocks, const fl_attention_head *head,
                              const fl_attention_block *block, float *out);
fl_status fl__attention_mix_ds(fl_attention_blocks *blocks, const fl_attention_head *head,
                               const fl_attention_block *block, float *dq);
/* dv, dk: the window's first row, rows of H * D. Written by the last block, which comes first,
 * added to by the others. */
fl_status fl__attention_spread_p(fl_attention_blocks *blocks, const fl_attention_head *head,
                                 const fl_attention_block *block, float *dv);
fl_status fl__attention_spread_ds(fl_attention_blocks *blocks, const fl_attention_head *head,
                                  const fl_attention_block *block, float *dk);

#endif
