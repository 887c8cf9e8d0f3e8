/* gemm_32x32_amx.c - many rows of x on AMX tiles: 2 x 2 tiles, 32 rows x 32 channels.
 *
 *   tmm0 tmm1   sums of rows 0..15  x panels 0, 1        tmm4  x, rows 0..15, 64 input channels
 *   tmm2 tmm3   sums of rows 16..31 x panels 0, 1        tmm5  x, rows 16..31
 *                                                        tmm6, tmm7  w of panels 0, 1
 *
 * A step of 64 input channels is four products of 16 cycles and four tile loads of 1 KB. An
 * item (TILE_M x TILE_N) walks K in blocks of equal size, at most K_BLOCK: x of a block stays
 * in L2 for all panels of the item, a pair of panels (32 channels x K_BLOCK) for all its rows.
 * Where K is one block, the sums of a pair become y at once; else those of the whole item wait
 * in scratch between blocks. While a pair of panels is in use the next one is fetched to L2.
 *
 * x is loaded as it lies, one row every ldx bytes. 8 bits: packed weights are tiles as they lie
 * (TDPBSSD). 4 bits: nibbles are expanded into a scratch pair once per item and block, still
 * unsigned (TDPBSUD), and 8 * x_sum is taken back. Rows that fill no 32 use the same code under
 * a tile configuration with fewer rows; a missing second tile (of rows or of channels) repeats
 * the first and is ignored.
 *
 * Tile configuration is state of the thread: set on entry, released on exit.
 * SPDX-License-Identifier: MIT */
#include "kernels/gemm_rows.h"
#include "kernels/x86/gemm_avx512.h"
#include "kernels/x86/tiles_amx.h"

#define TILE_M  FL_GEMM_32X32_AMX_TILE_M
#define TILE_N  FL_GEMM_32X32_AMX_TILE_N
#define K_BLOCK FL_GEMM_32X32_AMX_K_BLOCK
#define STEP    64   /* input channels of a tile */
#define SUMS    1024 /* int32 in the 4 sum tiles of 32 rows */

/* Weights of one K block and two panels: tiles of 1 KB, one after the other. */
typedef struct {
    const uint8_t *panel[2];
    const uint8_t *next; /* what is wanted next, to be fetched */
} panel_pair;

/* x of the item and one K block. */
typedef struct {
    const int8_t *x; /* [n_rows, ldx] */
    int64_t ldx;
    int n_rows, kc;
    bool first; /* K block of the item */
} x_block;

FL_INLINE void load_sums(const int32_t *sums, bool first)
{
    if (first) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, sums, 64);
        _tile_loadd(1, sums + 256, 64);
        _tile_loadd(2, sums + 512, 64);
        _tile_loadd(3, sums + 768, 64);
    }
}

FL_INLINE void store_sums(int32_t *sums)
{
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + 256, 64);
    _tile_stored(2, sums + 512, 64);
    _tile_stored(3, sums + 768, 64);
}

/* sums += x * w over n_steps * 64 input channels. x1: row 16 of x, or row 0 where there is
 * none. */
FL_INLINE void block_w8(int32_t *sums, bool first, const int8_t *x0, const int8_t *x1,
                        int64_t ldx, const panel_pair *w, int n_steps)
{
    const uint8_t *w0 = w->panel[0], *w1 = w->panel[1];
    const char *next = (const char *)w->next;
    load_sums(sums, first);
    for (int s = 0; s < n_steps; s++) {
        _tile_loadd(6, w0 + s * 1024, 64);
        _tile_loadd(4, x0 + s * STEP, ldx);
        _tile_dpbssd(0, 4, 6);
        _tile_loadd(7, w1 + s * 1024, 64);
        _tile_dpbssd(1, 4, 7);
        _tile_loadd(5, x1 + s * STEP, ldx);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
        for (int line = 0; line < 4; line++, next += 64) _mm_prefetch(next, _MM_HINT_T1);
    }
    store_sums(sums);
}

FL_INLINE void block_w4(int32_t *sums, bool first, const int8_t *x0, const int8_t *x1,
                        int64_t ldx, const panel_pair *w, int n_steps)
{
    const uint8_t *w0 = w->panel[0], *w1 = w->panel[1];
    const char *next = (const char *)w->next;
    load_sums(sums, first);
    for (int s = 0; s < n_steps; s++) {
        _tile_loadd(6, w0 + s * 1024, 64);
        _tile_loadd(4, x0 + s * STEP, ldx);
        _tile_dpbsud(0, 4, 6);
        _tile_loadd(7, w1 + s * 1024, 64);
        _tile_dpbsud(1, 4, 7);
        _tile_loadd(5, x1 + s * STEP, ldx);
        _tile_dpbsud(2, 5, 6);
        _tile_dpbsud(3, 5, 7);
        for (int line = 0; line < 2; line++, next += 64) _mm_prefetch(next, _MM_HINT_T1);
    }
    store_sums(sums);
}

static void expand_w4(uint8_t *to, const uint8_t *from, int kc)
{
    for (int k = 0; k < kc; k += 8, from += 64, to += 128) {
        const __m512i row = _mm512_load_si512(from);
        _mm512_store_si512(to, low_nibbles(row));
        _mm512_store_si512(to + 64, high_nibbles(row));
    }
}

/* All rows of x against one pair of panels. sums: [n_rows / 32][SUMS]. */
FL_INLINE void all_rows(int32_t *sums, const x_block *x, panel_pair w, const int bits)
{
    const int n_steps = x->kc / STEP;
    for (int m = 0; m < x->n_rows; m += 32, sums += SUMS) {
        const int rows = x->n_rows - m < 32 ? x->n_rows - m : 32;
        const int8_t *x0 = x->x + m * x->ldx, *x1 = rows > 16 ? x0 + 16 * x->ldx : x0;
        if (rows < 32) configure_tiles(rows);
        if (bits == 4)
            block_w4(sums, x->first, x0, x1, x->ldx, &w, n_steps);
        else
            block_w8(sums, x->first, x0, x1, x->ldx, &w, n_steps);
        w.next += n_steps * (bits == 4 ? 2 : 4) * 64;
    }
    if (x->n_rows > 32 && x->n_rows % 32) configure_tiles(32);
}

/* The finished sums of a pair -> y. */
static void store_pair(const fl_gemm *g, int m0, int m1, int n, int n1, const int32_t *sums,
                       int offset)
{
    const bool two = n + 16 < n1;
    const panel_consts c0 = load_panel(g, n), c1 = load_panel(g, two ? n + 16 : n);
    memory_barrier();
    for (int m = m0; m < m1; m++) {
        const int row = (m - m0) % 32;
        const int32_t *s = sums + (m - m0) / 32 * SUMS + row / 16 * 512 + row % 16 * 16;
        put_panel(g, m, n, c0.mask, finish(g, &c0, m, _mm512_load_si512(s), offset));
        if (!two) continue;
        put_panel(g, m, n + 16, c1.mask, finish(g, &c1, m, _mm512_load_si512(s + 256), offset));
    }
}

/* Where the item's work goes on after channels n.. of block k: the next pair, the next block,
 * or the channels after the item. */
FL_INLINE const uint8_t *next_weights(const fl_gemm *g, int n, int n0, int n1, int k,
                                      int k_block, const int bits)
{
    const size_t k_bytes = 2 * (size_t)bits; /* of one input channel of one panel */
    const size_t panel_bytes = (size_t)g->w->K_pad * k_bytes;
    if (n + 32 < n1)
        return g->w->data + (size_t)(n / 16 + 2) * panel_bytes + (size_t)k * k_bytes;
    if (k + k_block < g->w->K_pad)
        return g->w->data + (size_t)(n0 / 16) * panel_bytes + (size_t)(k + k_block) * k_bytes;
    return n1 < g->w->N ? g->w->data + (size_t)(n1 / 16) * panel_bytes : g->w->data;
}

FL_INLINE void run(const fl_gemm *g, int m0, int m1, int n0, int n1, void *scratch,
                   const int bits)
{
    const size_t k_bytes = 2 * (size_t)bits, panel_bytes = (size_t)g->w->K_pad * k_bytes;
    const int K_pad = g->w->K_pad, n_blocks = (K_pad + K_BLOCK - 1) / K_BLOCK;
    const int k_block = (K_pad / STEP + n_blocks - 1) / n_blocks * STEP;
    /* One K block: the sums of one pair at a time; else those of the item. */
    const int pair_sums = n_blocks == 1 ? 0 : TILE_M / 32 * SUMS;
    int32_t *const all_sums = scratch; /* [TILE_N / 32][TILE_M / 32][SUMS] */
    uint8_t *const expanded = (uint8_t *)(all_sums + TILE_M * TILE_N); /* [2][K_BLOCK][16] */

    configure_tiles(m1 - m0 < 32 ? m1 - m0 : 32);
    for (int k = 0; k < K_pad; k += k_block) {
        const int kc = K_pad - k < k_block ? K_pad - k : k_block;
        const x_block x = {g->x + m0 * g->ldx + k, g->ldx, m1 - m0, kc, k == 0};
        int32_t *sums = all_sums;
        for (int n = n0; n < n1; n += 32, sums += pair_sums) {
            const uint8_t *p0 =
                g->w->data + (size_t)(n / 16) * panel_bytes + (size_t)k * k_bytes;
            const uint8_t *p1 = n + 16 < n1 ? p0 + panel_bytes : p0;
            panel_pair w = {{p0, p1}, next_weights(g, n, n0, n1, k, k_block, bits)};
            if (bits == 4) {
                expand_w4(expanded, p0, kc);
                if (p1 != p0) expand_w4(expanded + K_BLOCK * 16, p1, kc);
                w.panel[0] = expanded;
                w.panel[1] = p1 != p0 ? expanded + K_BLOCK * 16 : expanded;
            }
            memory_barrier();
            all_rows(sums, &x, w, bits);
            if (k + kc == K_pad) store_pair(g, m0, m1, n, n1, sums, bits == 4 ? 8 : 0);
        }
    }
    _tile_release();
}

void fl__gemm_a8w4_32x32_amx(const fl_gemm *g, int m0, int m1, int n0, int n1, void *scratch)
{
    run(g, m0, m1, n0, n1, scratch, 4);
}

void fl__gemm_a8w8_32x32_amx(const fl_gemm *g, int m0, int m1, int n0, int n1, void *scratch)
{
    run(g, m0, m1, n0, n1, scratch, 8);
}
