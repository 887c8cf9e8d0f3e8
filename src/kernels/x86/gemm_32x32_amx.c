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
 *   chunk     of K: its weights stay in L1, 16 KB or 32 KB of them
 *   block     32 rows: x streams from L2 (TILELOADDT1, which leaves L1 alone), sums come from
 *             scratch and go back
 *
 * What is no product is spread evenly over the steps, in the shadow of the tile unit: nibbles
 * of the coming chunk are expanded to the other of two buffers, still unsigned (TDPBSUD; 8 *
 * x_sum is taken back), a line or two a step; packed weights of a later chunk are fetched to
 * L2; the sums of the pair before, which are whole, become y, a row every other step. At 8 bits
 * packed weights are tiles as they lie (TDPBSSD).
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
#define STEP    64   /* input channels of a tile */
#define SUMS    1024 /* int32 in the 4 sum tiles of 32 rows */

#define STREAM_BYTES (2 << 20) /* y of this size: a thread's L2 */

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
    uint8_t *expanded[2]; /* [2][k_chunk / 64][1024] of this chunk and of the coming one */
    /* Work beside the products, lines of each of the two panels. */
    const uint8_t *from[2];
    uint8_t *to[2];
    const char *fetch[2];
    int n_lines, n_done, n_expand; /* to be expanded, of them done, in a step */
    int n_fetch;                   /* in a step */
} item;

/* What a block works on. */
typedef struct {
    const int8_t *x[2]; /* rows 0.., 16.. */
    int64_t ldx;
    const uint8_t *w[2]; /* tiles of the panels, one after the other */
    int n_steps;
    bool first; /* chunk of K */
} block_job;

/* ---- y ----------------------------------------------------------------------------------- */

static void write_rows(const fl_gemm *g, int m0, bool stream, writer *out, int n_rows,
                       const int offset)
{
    const panel_consts c0 = out->c[0], c1 = out->c[1];
    const int end = FL_MIN(out->row + n_rows, out->n_rows);
    for (; out->row < end; out->row++) {
        const int m = m0 + out->row;
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

FL_INLINE void expand_line(uint8_t *to, const uint8_t *from)
{
    const __m512i row = _mm512_load_si512(from);
    _mm512_store_si512(to, low_nibbles(row));
    _mm512_store_si512(to + 64, high_nibbles(row));
}

/* The chunk at p will be expanded to buffer b. */
static void begin_expanding(item *it, place p, int b)
{
    const bool two = p.n + 16 < it->n1;
    it->n_lines = p.n_k / 8;
    it->n_done = 0;
    it->from[0] = it->from[1] = weights_at(it->g, p.n, p.k, 4);
    if (two && p.n_k) it->from[1] += panel_bytes(it->g, 4);
    it->to[0] = it->expanded[b];
    it->to[1] = it->expanded[b] + it->k_chunk * 16;
}

FL_INLINE void expand_rest(item *it)
{
    for (; it->n_done < it->n_lines; it->n_done++)
        for (int panel = 0; panel < 2; panel++)
            expand_line(it->to[panel] + it->n_done * 128, it->from[panel] + it->n_done * 64);
}

/* ---- products ---------------------------------------------------------------------------- */

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

/* sums += x * w, beside everything else there is to do. Pointers in locals: a barrier makes the
 * compiler load again what is in memory. */
FL_INLINE void block(item *it, const block_job *b, int32_t *sums, const int bits)
{
    const int offset = bits == 4 ? 8 : 0, n_steps = b->n_steps;
    const int64_t ldx = b->ldx, fetch_bytes = (int64_t)it->n_fetch * 64;
    const int8_t *x0 = b->x[0], *x1 = b->x[1];
    const uint8_t *w0 = b->w[0], *w1 = b->w[1];
    const char *fetch0 = it->fetch[0], *fetch1 = it->fetch[1];
    const uint8_t *const from0 = it->from[0], *const from1 = it->from[1];
    uint8_t *const to0 = it->to[0], *const to1 = it->to[1];
    const int n_lines = it->n_lines, n_expand = it->n_expand;
    int line = it->n_done;
    load_sums(sums, b->first);
    for (int s = 0; s < n_steps; s++) {
        memory_barrier();
        products(x0, x1, ldx, w0, w1, bits);
        memory_barrier();
        for (int64_t at = 0; at < fetch_bytes; at += 64) {
            _mm_prefetch(fetch0 + at, _MM_HINT_T1);
            _mm_prefetch(fetch1 + at, _MM_HINT_T1);
        }
        if (bits == 4) {
            const int end = FL_MIN(line + n_expand, n_lines);
            for (; line < end; line++) {
                expand_line(to0 + line * 128, from0 + line * 64);
                expand_line(to1 + line * 128, from1 + line * 64);
            }
        }
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
    it->n_done = line;
    memory_barrier();
    store_sums(sums);
    memory_barrier();
}

/* All rows of the item against the chunk at p, whose tiles are w (8 bits: as they lie). */
FL_INLINE void chunk(item *it, place p, const uint8_t *w0, const uint8_t *w1, int32_t *sums,
                     const int bits)
{
    const fl_gemm *g = it->g;
    const int n_rows = it->m1 - it->m0;
    block_job b = {.x = {g->x + it->m0 * g->ldx + p.k},
                   .ldx = g->ldx,
                   .w = {w0, w1},
                   .n_steps = p.n_k / STEP,
                   .first = p.k == 0};
    for (int m = 0; m < n_rows; m += 32, sums += SUMS, b.x[0] += 32 * b.ldx) {
        const int rows = FL_MIN(n_rows - m, 32);
        b.x[1] = rows > 16 ? b.x[0] + 16 * b.ldx : b.x[0];
        if (rows < 32 && n_rows > 32) configure_tiles(rows);
        block(it, &b, sums, bits);
    }
    if (n_rows > 32 && n_rows % 32) configure_tiles(32);
}

FL_INLINE int ceil_div(int a, int b)
{
    return (a + b - 1) / b;
}

/* Plans what is done beside the products of the chunk at p: lines of the coming chunks. */
FL_INLINE void plan(item *it, place p, place coming, place later, int buffer, const int bits)
{
    const fl_gemm *g = it->g;
    const int n_steps = ceil_div(it->m1 - it->m0, 32) * (p.n_k / STEP);
    const place fetch = bits == 4 ? later : coming;
    const int fetch_n = fetch.n_k ? fetch.n : it->n1 < g->w->N ? it->n1 : 0;
    const char *from = (const char *)weights_at(g, fetch_n, fetch.n_k ? fetch.k : 0, bits);
    it->fetch[0] = from;
    it->fetch[1] = from + panel_bytes(g, bits);
    it->n_fetch = ceil_div(p.n_k * bits / 32, n_steps);
    if (bits == 4) {
        begin_expanding(it, coming, buffer);
        it->n_expand = ceil_div(it->n_lines, n_steps);
    }
}

FL_INLINE item item_new(const fl_gemm *g, int m0, int m1, int n0, int n1, void *scratch,
                        const int bits)
{
    const int K_pad = g->w->K_pad, n_blocks = ceil_div(K_pad, K_BLOCK);
    const int k_block = ceil_div(K_pad / STEP, n_blocks) * STEP;
    const bool whole = m1 - m0 <= 32 || ((m1 - m0) % 32 && m1 - m0 < LONG_ITEM);
    const int most = bits == 4 ? FL_GEMM_32X32_AMX_K_CHUNK_4 : FL_GEMM_32X32_AMX_K_CHUNK_8;
    uint8_t *const expanded = (uint8_t *)scratch + TILE_M * TILE_N * 4;
    return (item){.g = g,
                  .m0 = m0,
                  .m1 = m1,
                  .n0 = n0,
                  .n1 = n1,
                  .k_block = k_block,
                  .k_chunk = whole ? k_block : FL_MIN(most, k_block),
                  .every = FL_MAX(k_block / STEP / 32, 1),
                  .n_rows = ceil_div(32, k_block / STEP),
                  .stream = may_stream(g, n0, n1),
                  .expanded = {expanded, expanded + K_BLOCK * 32}};
}

FL_INLINE void run(const fl_gemm *g, int m0, int m1, int n0, int n1, void *scratch,
                   const int bits)
{
    const int offset = bits == 4 ? 8 : 0;
    int32_t *const all_sums = scratch; /* [TILE_N / 32][TILE_M / 32][SUMS] */
    item it = item_new(g, m0, m1, n0, n1, scratch, bits);
    place p = next_place(&it, (place){.n = n0}), coming = next_place(&it, p);
    int buffer = 0;

    configure_tiles(FL_MIN(m1 - m0, 32));
    if (bits == 4) {
        begin_expanding(&it, p, 0);
        expand_rest(&it);
    }
    while (p.n_k) {
        const place later = coming.n_k ? next_place(&it, coming) : coming;
        /* One K block: two buffers in turn, of the pair at work and of the one on its way out;
         * else all sums of the item wait for the last block. */
        const int pair = it.k_block < g->w->K_pad ? (p.n - n0) / 32 : (p.n - n0) / 32 % 2;
        int32_t *const sums = all_sums + pair * (TILE_M / 32 * SUMS);
        const uint8_t *w0 = weights_at(g, p.n, p.k, bits);
        const uint8_t *w1 = p.n + 16 < n1 ? w0 + panel_bytes(g, bits) : w0;
        if (bits == 4) {
            w0 = it.expanded[buffer];
            w1 = w0 + it.k_chunk * 16;
        }
        plan(&it, p, coming, later, !buffer, bits);
        chunk(&it, p, w0, w1, sums, bits);
        if (bits == 4) expand_rest(&it);
        if (p.k + p.n_k == g->w->K_pad) {
            write_rows(g, m0, it.stream, &it.out, TILE_M, offset);
            begin_writing(&it, sums, p.n);
        }
        p = coming;
        coming = later;
        buffer = !buffer;
    }
    memory_barrier();
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
