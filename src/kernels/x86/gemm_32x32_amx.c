/* gemm_32x32_amx.c - many rows of x on AMX tiles: 2 x 2 tiles, 32 rows x 32 channels.
 *
 *   tmm0 tmm1   sums of rows 0..15  x panels 0, 1        tmm4  x, rows 0..15, 64 input channels
 *   tmm2 tmm3   sums of rows 16..31 x panels 0, 1        tmm5  x, rows 16..31
 *                                                        tmm6, tmm7  w of panels 0, 1
 *
 * A step of 64 input channels is four products of 16 cycles and four tile loads of 1 KB. An
 * item (TILE_M x TILE_N) is walked, from the outside in, by
 *
 *   K block   at most K_BLOCK channels, all of about the same size: its x stays in L2
 *   pair      of panels, 32 channels
 *   chunk     of K: its weights, 32 KB, stay in L1
 *   block     32 rows: x streams from L2 (TILELOADDT1, which leaves L1 alone), sums come from
 *             scratch and go back
 *
 * What is no product happens in the shadow of the tile unit. 8 bits: packed weights are tiles
 * as they lie (TDPBSSD). 4 bits: nibbles are expanded to tiles, still unsigned (TDPBSUD; 8 *
 * x_sum is taken back); the last block of a chunk puts those of the coming chunk in the place
 * of what it has just used, so that they are in L1 long before they are wanted. The sums of the
 * pair before, which are whole, become y, a row every other step. Packed weights of a later
 * chunk, and x of the next K block, are fetched to L2.
 *
 * Rows that fill no 32 use the same code under a tile configuration with fewer rows; a missing
 * second tile (of rows or of channels) repeats the first and is ignored. Changing the
 * configuration costs as much as some steps: short items with such rows take K blocks whole.
 *
 * Tile configuration is state of the thread: set on entry, released on exit.
 * SPDX-License-Identifier: MIT */
#include "kernels/gemm_rows.h"
#include "kernels/x86/gemm_avx512.h"
#include "kernels/x86/tiles_amx.h"

#define TILE_M  FL_GEMM_32X32_AMX_TILE_M
#define TILE_N  FL_GEMM_32X32_AMX_TILE_N
#define K_BLOCK FL_GEMM_32X32_AMX_K_BLOCK
#define K_CHUNK FL_GEMM_32X32_AMX_K_CHUNK
#define STEP    64   /* input channels of a tile */
#define SUMS    1024 /* int32 in the 4 sum tiles of 32 rows */

#define STREAM_BYTES (2 << 20) /* y of this size: a thread's L2 */

#define ROWS_AHEAD 12 /* of y that are fetched before they are written */

#define X_PAIRS 8 /* at the end of a K block, during which x of the next one is fetched */

#define LONG_ITEM 128 /* rows from which chunks pay in spite of changed configurations */

/* A chunk: channels k..k + n_k of pair n, in the K block that begins with k0. n_k = 0: beyond
 * the item's last. */
typedef struct {
    int k0, n, k, n_k;
} place;

/* Whole sums of a pair on their way to y. */
typedef struct {
    const int32_t *sums; /* [n_rows / 32][SUMS] */
    panel_consts c[2];
    int n, row, n_rows; /* row = n_rows: done */
    int wait;           /* steps till the next rows */
} writer;

typedef struct {
    const fl_gemm *g;
    int m0, m1, n0, n1;
    int k_block, k_chunk;
    int every, n_rows; /* y: so many rows every so many steps */
    bool stream;       /* y past the caches */
    writer out;
    uint8_t *expanded; /* 4 bits: [2][k_chunk / 64][1024] */
    const char *fetch[2]; /* of each panel, n_fetch lines a step */
    int n_fetch;
    /* x to be fetched: from line x_line of the row at x on, so many lines a step. */
    const char *x;
    int x_rows, x_line, x_lines, n_fetch_x;
} item;

/* What a block works on. */
typedef struct {
    const int8_t *x[2]; /* rows 0.., 16.. */
    int64_t ldx;
    const uint8_t *w[2]; /* tiles of the panels, one after the other */
    int n_steps;
} block_job;

/* ---- y ----------------------------------------------------------------------------------- */

/* Lines of row m that will be read and written soon. */
FL_INLINE void fetch_row(const fl_gemm *g, int m, int n)
{
    const size_t value_bytes = g->y_bf16 ? 2 : 4;
    char *y = (char *)g->y + (size_t)(m * g->ldy + n) * value_bytes;
    __builtin_prefetch(y, 1, 3);
    if (!g->y_bf16) __builtin_prefetch(y + 64, 1, 3);
    if (g->residual && g->residual != g->y) {
        const char *r = (const char *)(g->residual + m * g->ldr + n);
        _mm_prefetch(r, _MM_HINT_T0);
        _mm_prefetch(r + 64, _MM_HINT_T0);
    }
}

static void write_rows(const fl_gemm *g, int m0, bool stream, writer *out, int n_rows,
                       const int offset)
{
    const panel_consts c0 = out->c[0], c1 = out->c[1];
    const int end = FL_MIN(out->row + n_rows, out->n_rows);
    for (; out->row < end; out->row++) {
        const int m = m0 + out->row;
        if (!stream && out->row + ROWS_AHEAD < out->n_rows)
            fetch_row(g, m + ROWS_AHEAD, out->n);
        const int32_t *s = out->sums + (out->row >> 4) * 512 + (out->row & 15) * 16;
        put_pair(g, m, out->n, &c0, &c1, finish(g, &c0, m, _mm512_load_si512(s), offset),
                 finish(g, &c1, m, _mm512_load_si512(s + 256), offset), stream);
    }
}

/* Whole lines only, of a y too large to be in the cache still when it is read. */
static bool may_stream(const fl_gemm *g, int n0, int n1)
{
    const int64_t value_bytes = g->y_bf16 ? 2 : 4, row_bytes = g->ldy * value_bytes;
    return (n0 | n1) % 32 == 0 && ((uintptr_t)g->y | (uintptr_t)row_bytes) % 64 == 0 &&
           !g->residual && g->M * (int64_t)g->w->N * value_bytes >= STREAM_BYTES;
}

/* The sums of pair n are whole. */
static void begin_writing(item *it, const int32_t *sums, int n)
{
    writer *out = &it->out;
    *out = (writer){.sums = sums, .n = n, .n_rows = it->m1 - it->m0};
    out->c[0] = out->c[1] = load_panel(it->g, n);
    if (n + 16 < it->n1) out->c[1] = load_panel(it->g, n + 16);
    else out->c[1].mask = 0;
}

/* ---- weights ----------------------------------------------------------------------------- */

FL_INLINE const uint8_t *weights_at(const fl_gemm *g, int n, int k, const int bits)
{
    const size_t k_bytes = 2 * (size_t)bits; /* of one input channel of one panel */
    return g->w->data + ((size_t)(n / 16) * (size_t)g->w->K_pad + (size_t)k) * k_bytes;
}

FL_INLINE size_t panel_bytes(const fl_gemm *g, const int bits)
{
    return (size_t)g->w->K_pad * 2 * (size_t)bits;
}

static place next_place(const item *it, place p)
{
    const int K_pad = it->g->w->K_pad;
    p.k += p.n_k;
    if (p.k == FL_MIN(p.k0 + it->k_block, K_pad)) {
        p.k = p.k0;
        p.n += 32;
    }
    if (p.n >= it->n1) {
        p.n = it->n0;
        p.k = p.k0 += it->k_block;
    }
    const int end = FL_MIN(p.k0 + it->k_block, K_pad);
    p.n_k = FL_MAX(FL_MIN(it->k_chunk, end - p.k), 0);
    return p;
}

/* Nibbles of one step of both panels. */
FL_INLINE void expand_step(uint8_t *to0, uint8_t *to1, const uint8_t *from0,
                           const uint8_t *from1)
{
    for (int line = 0; line < 8; line++) {
        const __m512i row0 = _mm512_load_si512(from0 + line * 64);
        const __m512i row1 = _mm512_load_si512(from1 + line * 64);
        _mm512_store_si512(to0 + line * 128, low_nibbles(row0));
        _mm512_store_si512(to0 + line * 128 + 64, high_nibbles(row0));
        _mm512_store_si512(to1 + line * 128, low_nibbles(row1));
        _mm512_store_si512(to1 + line * 128 + 64, high_nibbles(row1));
    }
}

/* Steps s.. of the chunk at p. */
static void expand_from(const item *it, place p, int s)
{
    const uint8_t *from0 = weights_at(it->g, p.n, p.k, 4);
    const uint8_t *from1 = p.n + 16 < it->n1 ? from0 + panel_bytes(it->g, 4) : from0;
    uint8_t *const to0 = it->expanded, *const to1 = to0 + it->k_chunk * 16;
    for (; s < p.n_k / STEP; s++)
        expand_step(to0 + s * 1024, to1 + s * 1024, from0 + s * 512, from1 + s * 512);
}

/* ---- x ----------------------------------------------------------------------------------- */

/* The next K block's x, or that of the first one for the next item, while the last pairs of
 * one are at work. */
static void begin_fetching_x(item *it, place p)
{
    const fl_gemm *g = it->g;
    const int n_pairs = (it->n1 - p.n + 31) / 32, most = (it->n1 - it->n0 + 31) / 32;
    if (it->k_block == g->w->K_pad || p.k != p.k0 || n_pairs != FL_MIN(X_PAIRS, most)) return;
    const bool wrap = p.k0 + it->k_block >= g->w->K_pad;
    if (wrap && it->n1 == g->w->N) return;
    const int blocks = (it->m1 - it->m0 + 31) / 32;
    const int steps = n_pairs * blocks * it->k_block / STEP;
    it->x = (const char *)(g->x + it->m0 * g->ldx + (wrap ? 0 : p.k0 + it->k_block));
    it->x_rows = it->m1 - it->m0;
    it->x_line = 0;
    it->x_lines = it->k_block / STEP;
    it->n_fetch_x = (it->x_rows * it->x_lines + steps - 1) / steps;
}

static void fetch_x(item *it)
{
    for (int i = 0; i < it->n_fetch_x && it->x_rows > 0; i++) {
        _mm_prefetch(it->x + it->x_line * 64, _MM_HINT_T1);
        if (++it->x_line < it->x_lines) continue;
        it->x_line = 0;
        it->x_rows--;
        it->x += it->g->ldx;
    }
}

/* ---- products ---------------------------------------------------------------------------- */

/* Sums of the block just done to memory, those of the next one to the tiles: one by one, each
 * tile is free again soon. */
FL_INLINE void swap_sums(int32_t *done, const int32_t *next, bool first)
{
    if (first) {
        _tile_stored(0, done, 64);
        _tile_zero(0);
        _tile_stored(2, done + 512, 64);
        _tile_zero(2);
        _tile_stored(1, done + 256, 64);
        _tile_zero(1);
        _tile_stored(3, done + 768, 64);
        _tile_zero(3);
    } else {
        _tile_stored(0, done, 64);
        _tile_loadd(0, next, 64);
        _tile_stored(2, done + 512, 64);
        _tile_loadd(2, next + 512, 64);
        _tile_stored(1, done + 256, 64);
        _tile_loadd(1, next + 256, 64);
        _tile_stored(3, done + 768, 64);
        _tile_loadd(3, next + 768, 64);
    }
}

/* The same where the next block has other rows; configuring zeroes the tiles. */
static void swap_rows(int32_t *done, const int32_t *next, bool first, int n_rows)
{
    _tile_stored(0, done, 64);
    _tile_stored(1, done + 256, 64);
    _tile_stored(2, done + 512, 64);
    _tile_stored(3, done + 768, 64);
    configure_tiles(n_rows);
    if (first) return;
    memory_barrier();
    _tile_loadd(0, next, 64);
    _tile_loadd(1, next + 256, 64);
    _tile_loadd(2, next + 512, 64);
    _tile_loadd(3, next + 768, 64);
}

/* x0, x1, w0, w1: tiles of this step. */
FL_INLINE void products(const int8_t *x0, const int8_t *x1, int64_t ldx, const uint8_t *w0,
                        const uint8_t *w1, const int bits)
{
    _tile_stream_loadd(4, x0, ldx);
    _tile_loadd(6, w0, 64);
    if (bits == 4) _tile_dpbsud(0, 4, 6);
    else _tile_dpbssd(0, 4, 6);
    _tile_stream_loadd(5, x1, ldx);
    if (bits == 4) _tile_dpbsud(2, 5, 6);
    else _tile_dpbssd(2, 5, 6);
    _tile_loadd(7, w1, 64);
    if (bits == 4) {
        _tile_dpbsud(1, 4, 7);
        _tile_dpbsud(3, 5, 7);
    } else {
        _tile_dpbssd(1, 4, 7);
        _tile_dpbssd(3, 5, 7);
    }
}

/* Tiles += x * w, beside everything else there is to do. coming: what to expand in the place of
 * w, or NULL. Pointers in locals: a barrier makes the compiler load again what is in memory. */
FL_INLINE void block(item *it, const block_job *b, const place *coming, const int bits)
{
    const int offset = bits == 4 ? 8 : 0, n_steps = b->n_steps;
    const int64_t ldx = b->ldx, fetch_bytes = (int64_t)it->n_fetch * 64;
    const int8_t *x0 = b->x[0], *x1 = b->x[1];
    const uint8_t *w0 = b->w[0], *w1 = b->w[1], *from0 = NULL, *from1 = NULL;
    const char *fetch0 = it->fetch[0], *fetch1 = it->fetch[1];
    int n_expand = 0;
    if (coming) {
        n_expand = coming->n_k / STEP;
        from0 = weights_at(it->g, coming->n, coming->k, 4);
        from1 = coming->n + 16 < it->n1 ? from0 + panel_bytes(it->g, 4) : from0;
    }
    for (int s = 0; s < n_steps; s++) {
        memory_barrier();
        products(x0, x1, ldx, w0, w1, bits);
        memory_barrier();
        for (int64_t at = 0; at < fetch_bytes; at += 64) {
            _mm_prefetch(fetch0 + at, _MM_HINT_T1);
            _mm_prefetch(fetch1 + at, _MM_HINT_T1);
        }
        if (coming && s < n_expand)
            expand_step((uint8_t *)(uintptr_t)w0, (uint8_t *)(uintptr_t)w1, from0 + s * 512,
                        from1 + s * 512);
        if (it->x_rows > 0) fetch_x(it);
        if (it->out.row < it->out.n_rows && --it->out.wait < 0) {
            it->out.wait = it->every - 1;
            write_rows(it->g, it->m0, it->stream, &it->out, it->n_rows, offset);
        }
        x0 += STEP;
        x1 += STEP;
        w0 += 1024;
        w1 += 1024;
        fetch0 += fetch_bytes;
        fetch1 += fetch_bytes;
    }
    it->fetch[0] = fetch0;
    it->fetch[1] = fetch1;
    memory_barrier();
}

/* All rows of the item against the chunk at p, whose tiles are w. The tiles hold the sums of
 * the first block; at the end they hold those at `after`, of the coming chunk. */
FL_INLINE void chunk(item *it, place p, const place *coming, const uint8_t *w0,
                     const uint8_t *w1, int32_t *sums, const int32_t *after, const int bits)
{
    const fl_gemm *g = it->g;
    const int n_rows = it->m1 - it->m0;
    block_job b = {.x = {g->x + it->m0 * g->ldx + p.k},
                   .ldx = g->ldx,
                   .w = {w0, w1},
                   .n_steps = p.n_k / STEP};
    for (int m = 0; m < n_rows; m += 32, sums += SUMS, b.x[0] += 32 * b.ldx) {
        const int rows = FL_MIN(n_rows - m, 32);
        const bool last = m + 32 >= n_rows;
        const int next_rows = last ? FL_MIN(n_rows, 32) : FL_MIN(n_rows - m - 32, 32);
        const int32_t *next = last ? after : sums + SUMS;
        const bool next_first = last ? coming->k == 0 || coming->n_k == 0 : p.k == 0;
        b.x[1] = rows > 16 ? b.x[0] + 16 * b.ldx : b.x[0];
        if (bits == 4 && last) block(it, &b, coming, bits);
        else block(it, &b, NULL, bits);
        if (next_rows == rows) swap_sums(sums, next, next_first);
        else swap_rows(sums, next, next_first, next_rows);
        memory_barrier();
    }
    if (bits == 4) expand_from(it, *coming, p.n_k / STEP);
}

FL_INLINE int ceil_div(int a, int b)
{
    return (a + b - 1) / b;
}

/* Fetches the chunk at f, or what follows the item, beside all blocks of a chunk. */
FL_INLINE void begin_fetching(item *it, place f, const int bits)
{
    const fl_gemm *g = it->g;
    const int n = f.n_k ? f.n : it->n1 < g->w->N ? it->n1 : 0;
    it->fetch[0] = (const char *)weights_at(g, n, f.n_k ? f.k : 0, bits);
    it->fetch[1] = it->fetch[0] + panel_bytes(g, bits);
    it->n_fetch = ceil_div(2 * bits, ceil_div(it->m1 - it->m0, 32)); /* in as many steps */
}

FL_INLINE item item_new(const fl_gemm *g, int m0, int m1, int n0, int n1, void *scratch)
{
    const int K_pad = g->w->K_pad, n_blocks = ceil_div(K_pad, K_BLOCK);
    const int k_block = ceil_div(K_pad / STEP, n_blocks) * STEP;
    const bool whole = m1 - m0 <= 32 || ((m1 - m0) % 32 && m1 - m0 < LONG_ITEM);
    return (item){.g = g,
                  .m0 = m0,
                  .m1 = m1,
                  .n0 = n0,
                  .n1 = n1,
                  .k_block = k_block,
                  .k_chunk = whole ? k_block : FL_MIN(K_CHUNK, k_block),
                  .every = FL_MAX(k_block / STEP / 32, 1),
                  .n_rows = ceil_div(32, k_block / STEP),
                  .stream = may_stream(g, n0, n1),
                  .expanded = (uint8_t *)scratch + TILE_M * TILE_N * 4};
}

/* Where the sums of pair n are. One K block: two buffers in turn, of the pair at work and of
 * the one on its way out; else all sums of the item wait for the last block. */
FL_INLINE int32_t *sums_at(const item *it, int32_t *all_sums, int n)
{
    const int pair = (n - it->n0) / 32;
    return all_sums + (it->k_block < it->g->w->K_pad ? pair : pair % 2) * (TILE_M / 32 * SUMS);
}

FL_INLINE void run(const fl_gemm *g, int m0, int m1, int n0, int n1, void *scratch,
                   const int bits)
{
    const int offset = bits == 4 ? 8 : 0;
    int32_t *const all_sums = scratch; /* [TILE_N / 32][TILE_M / 32][SUMS] */
    item it = item_new(g, m0, m1, n0, n1, scratch);
    place p = next_place(&it, (place){.n = n0}), coming = next_place(&it, p);

    configure_tiles(FL_MIN(m1 - m0, 32)); /* zeroes the sums of the first block */
    if (bits == 4) expand_from(&it, p, 0);
    while (p.n_k) {
        const place later = coming.n_k ? next_place(&it, coming) : coming;
        int32_t *const sums = sums_at(&it, all_sums, p.n);
        const uint8_t *w0 = weights_at(g, p.n, p.k, bits);
        const uint8_t *w1 = p.n + 16 < n1 ? w0 + panel_bytes(g, bits) : w0;
        if (bits == 4) {
            w0 = it.expanded;
            w1 = w0 + it.k_chunk * 16;
        }
        begin_fetching(&it, bits == 4 ? later : coming, bits);
        begin_fetching_x(&it, p);
        chunk(&it, p, &coming, w0, w1, sums, sums_at(&it, all_sums, coming.n), bits);
        if (p.k + p.n_k == g->w->K_pad) {
            write_rows(g, m0, it.stream, &it.out, TILE_M, offset);
            begin_writing(&it, sums, p.n);
        }
        p = coming;
        coming = later;
    }
    write_rows(g, m0, it.stream, &it.out, TILE_M, offset);
    if (it.stream) _mm_sfence();
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
