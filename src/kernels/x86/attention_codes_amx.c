/* attention_codes_amx.c - attention over codes on AMX tiles.
 *
 * Codes meet digits as strips: 64 terms by 64 lanes, bytes [16][64 lanes][4], four tiles side
 * by side. A page of keys is a strip for each 64 channels, a page of values one for each 64
 * lanes. Up to 4 bits a strip holds codes minus zeros, which fit a signed byte, so that the
 * sums are what they should be at once; 8-bit codes are read as they lie in the block, and
 * zeros are taken out of the sums.
 *
 *   few rows (decoding)  the three digits of up to 5 rows are the rows of one tile: 4 sums, 1
 *                        of digits, 3 of codes. Strips are made one ahead of the products
 *                        that read them. All this takes about as long as reading the pages,
 *                        so the next piece is fetched meanwhile: at each step as many lines
 *                        as correspond to its share of the time.
 *   blocks of 16 rows    a tile of sums for each digit and half a strip: 6 sums, 1 of digits,
 *                        1 of codes. All strips are made once, for all blocks. Tiles work on
 *                        a block's scores, and on the values of the one before the last, while
 *                        vectors make the softmax of the block between.
 *
 * Behind the last row tiles read whatever is there, and its sums are left alone.
 * SPDX-License-Identifier: MIT */
#include "base/status.h"
#include "kernels/x86/attention_codes_avx512.h"
#include "kernels/x86/tiles_amx.h"

enum {
    LINE = 16,         /* lanes of a tile */
    STRIDE = 4 * T,    /* bytes of four terms of a strip's lanes */
    STRIP = 64 * T,    /* bytes */
    FEW = 5,           /* rows whose digits fit a tile */
    BLOCK = 16,        /* rows of a block of many */
    TILE = 16 * LINE,  /* sums of a tile */
    RING = 2           /* strips of few rows */
};

/* Rows of a block. */
static int block_rows(int n_rows)
{
    return n_rows <= FEW ? n_rows : BLOCK;
}

static row_layout layout_of(int rows, int terms)
{
    const size_t apart = (size_t)rows * 64;
    return (row_layout){.block = rows,
                        .block_bytes = DIGITS * apart * (size_t)(terms / 64),
                        .step = DIGITS * apart,
                        .apart = apart};
}

void fl__attention_prepare_amx(void *x, const float *q, int64_t q_stride, int n_rows, int group,
                               int D, float scale)
{
    const row_layout layout = layout_of(block_rows(n_rows), fl__codes_terms(D));
    prepare_rows(x, &layout, q, q_stride, n_rows, group, D, scale);
}

/* ---- strips ------------------------------------------------------------------------------ */

/* Codes of terms [term, term + 4) of lanes [lane, lane + 16). */
FL_INLINE __m512i four_codes(const uint8_t *block, fl_kv_side side, int D, int bits, int term,
                             int lane)
{
    const int b = bits == 3 ? 2 : bits, row_bytes = 4 * fl__kv_lanes(side, D);
    const uint8_t *const at = block + term / (32 / b) * row_bytes + 4 * lane;
    const __m512i mask = _mm512_set1_epi32((int32_t)fl__kv_mask(b));
    const int shift = term % (32 / b) / 4 * b, third_shift = term % 32 / 4;
    const __m512i codes = _mm512_and_si512(
        _mm512_srl_epi32(_mm512_loadu_si512(at), _mm_cvtsi32_si128(shift)), mask);
    if (bits != 3) return codes;
    const __m512i word = _mm512_loadu_si512(block + fl__kv_third_at(side, D) +
                                            term / 32 * row_bytes + 4 * lane);
    const __m512i third = _mm512_and_si512(
        _mm512_srl_epi32(word, _mm_cvtsi32_si128(third_shift)), _mm512_set1_epi32(0x01010101));
    return _mm512_or_si512(codes, _mm512_slli_epi32(third, 2));
}

/* All channels of a page: one strip after the other, codes minus zeros. */
FL_INLINE void spread_keys_bits(uint8_t *to, const uint8_t *block, int D, int bits)
{
    const uint8_t *zeros = block + fl__kv_zero_at(FL_KV_KEYS, D, bits);
    __m512i zero[4];
    for (int i = 0; i < 4; i++) {
        const __m512i z = _mm512_cvtepu8_epi32(
            _mm_loadu_si128((const __m128i *)(const void *)(zeros + 16 * i)));
        const __m512i two = _mm512_or_si512(z, _mm512_slli_epi32(z, 8));
        zero[i] = _mm512_or_si512(two, _mm512_slli_epi32(two, 16));
    }
    for (int term = 0; term < D; term += 4, to += STRIDE)
        for (int i = 0; i < 4; i++)
            _mm512_store_si512(
                to + 64 * i,
                _mm512_sub_epi8(four_codes(block, FL_KV_KEYS, D, bits, term, 16 * i), zero[i]));
}

/* Lanes [lane, lane + 16 n) of a page of values. */
FL_INLINE void spread_values_bits(uint8_t *to, const uint8_t *block, int D, int bits, int lane,
                                  int n)
{
    const uint8_t *zeros = block + fl__kv_zero_at(FL_KV_VALUES, D, bits);
    for (int term = 0; term < T; term += 4, to += STRIDE) {
        int32_t z;
        memcpy(&z, zeros + term, sizeof z);
        for (int i = 0; i < n; i++)
            _mm512_store_si512(
                to + 64 * i,
                _mm512_sub_epi8(four_codes(block, FL_KV_VALUES, D, bits, term, lane + 16 * i),
                                _mm512_set1_epi32(z)));
    }
}

static void spread_keys(uint8_t *to, const uint8_t *block, int D, int bits)
{
    switch (bits) {
    case 4: spread_keys_bits(to, block, D, 4); break;
    case 3: spread_keys_bits(to, block, D, 3); break;
    case 2: spread_keys_bits(to, block, D, 2); break;
    default: break; /* read as they lie */
    }
}

static void spread_values(uint8_t *to, const uint8_t *block, int D, int bits, int lane, int n)
{
    switch (bits) {
    case 4:
        if (n == 4) spread_values_bits(to, block, D, 4, lane, 4);
        else spread_values_bits(to, block, D, 4, lane, n);
        break;
    case 3: spread_values_bits(to, block, D, 3, lane, n); break;
    case 2: spread_values_bits(to, block, D, 2, lane, n); break;
    default: break;
    }
}

/* Four terms of a strip's lanes are `stride` bytes behind the four before. */
typedef struct strip {
    const uint8_t *codes;
    int64_t stride;
} strip;

/* ---- fetching ---------------------------------------------------------------------------- */

#ifndef FETCH_STEP
#define FETCH_STEP 2 /* lines: the other one of a pair comes along */
#endif

/* The next piece, block by block as it lies in memory, which the core's own prefetching likes:
 * lines from `line` of block `at` on are yet to be fetched. */
typedef struct stream {
    const void *const *block;
    int n, at, line, n_lines[2];      /* of a block of keys, of values */
    int per_page, per_row, per_strip; /* lines at each step */
} stream;

/* Scores take two fifths of the time, softmax a quarter, values the rest. */
static stream stream_of(const fl_attention_codes *a, int n_pages, int n_strips)
{
    stream s = {.block = a->next, .n = a->next ? a->n_next : 0};
    s.n_lines[0] = (int)(fl__kv_block_bytes(FL_KV_KEYS, a->D, a->k_bits) / 64);
    s.n_lines[1] = (int)(fl__kv_block_bytes(FL_KV_VALUES, a->D, a->v_bits) / 64);
    const int n = (s.n + 1) / 2 * (s.n_lines[0] + s.n_lines[1]);
    s.per_page = n * 2 / 5 / n_pages + 1;
    s.per_row = n / 4 / a->n_rows + 1;
    s.per_strip = n * 7 / 20 / (n_pages * n_strips) + 1;
    return s;
}

/* n more lines, to the second-level cache. */
FL_INLINE void fetch(stream *s, int n)
{
    while (n > 0 && s->at < s->n) {
        const int n_lines = s->n_lines[s->at % 2];
        const char *block = s->block[s->at];
        for (; n > 0 && s->line < n_lines; n -= FETCH_STEP, s->line += FETCH_STEP)
            _mm_prefetch(block + 64 * s->line, _MM_HINT_T1);
        if (s->line < n_lines) return;
        s->line = 0;
        s->at++;
    }
}

/* What a call works on. */
typedef struct call {
    const fl_attention_codes *a;
    fl_codes_work work;
    row_layout x, w;
    const uint8_t *rows; /* prepared queries */
    int n_pages, n_strips, ld;
} call;

/* Channels [64 i, ..) of page p of keys, spread to `at` where that was needed. */
FL_INLINE strip key_strip(const call *c, int p, const uint8_t *at, int i)
{
    if (c->a->k_bits == 8) at = c->a->k[p];
    return (strip){at + i * STRIP, STRIDE};
}

FL_INLINE strip value_strip(const call *c, int p, const uint8_t *at, int lane)
{
    if (c->a->v_bits != 8) return (strip){at, STRIDE};
    return (strip){(const uint8_t *)c->a->v[p] + 4 * lane, 4 * (int64_t)c->a->D};
}

/* Tiles of the strip of lanes from `lane` on. */
FL_INLINE int strip_tiles(const call *c, int lane)
{
    return FL_MIN(T, c->ld - lane) / LINE;
}

static void load_grids(const call *c)
{
    const fl_attention_codes *a = c->a;
    for (int p = 0; p < a->n_pages; p++) {
        const int t = p * T;
        load_grid(c->work.v_scale + t, c->work.v_zero + t, a->v[p], FL_KV_VALUES, a->D,
                  a->v_bits);
    }
    for (int t = fl__codes_seen(a, a->n_rows - 1); t < a->n_pages * T; t++)
        c->work.v_scale[t] = 0; /* not whatever lies there */
}

static void load_key_grid(const call *c, int p)
{
    load_grid(c->work.k_scale + p * T, c->work.k_zero + p * T, c->a->k[p], FL_KV_KEYS, c->a->D,
              c->a->k_bits);
}

/* ---- from sums to results ---------------------------------------------------------------- */

/* T of sixteen lanes whose digits' sums lie `apart` sums from each other. */
FL_INLINE __m512 total_of(const int32_t *sums, int apart, __m512i zero_h, __m512i zero_l)
{
    const __m512i l1 = _mm512_slli_epi32(_mm512_load_si512(sums + apart), 7);
    const __m512i l = _mm512_add_epi32(l1, _mm512_load_si512(sums + 2 * apart));
    return total(_mm512_sub_epi32(_mm512_load_si512(sums), zero_h),
                 _mm512_sub_epi32(l, zero_l));
}

/* Scores of tokens from t0 on of rows [r0, r0 + n) to s [n][FL_CODES_KEYS]; sums [n_tiles]. */
FL_INLINE void put_lanes(const call *c, float *s, const int32_t *all, int t0, int n_tiles,
                         int r0, int n, int apart, int tile_sums, __m512 *tops, bool centred)
{
    const fl_codes_head *heads = (const fl_codes_head *)c->a->x + r0;
    const __m512i none = _mm512_setzero_si512();
    for (int r = 0; r < n; r++, s += FL_CODES_KEYS) {
        const __m512 step = _mm512_set1_ps(heads[r].step);
        const int seen = fl__codes_seen(c->a, r0 + r);
        for (int i = 0; i < n_tiles; i++) {
            const int32_t *sums = all + i * tile_sums + r * LINE;
            const int t = t0 + 16 * i;
            __m512i zero_h = none, zero_l = none;
            if (!centred) {
                const __m512i zero = _mm512_loadu_si512(c->work.k_zero + t);
                zero_h = _mm512_mullo_epi32(zero, _mm512_set1_epi32(heads[r].sum_h));
                zero_l = _mm512_mullo_epi32(zero, _mm512_set1_epi32(heads[r].sum_l));
            }
            tops[r] = put_scores(s, total_of(sums, apart, zero_h, zero_l), step,
                                 c->work.k_scale, t, seen, tops[r]);
        }
    }
}

FL_INLINE void scores(const call *c, float *s, const int32_t *sums, int t0, int n_tiles, int r0,
                      int n, int apart, int tile_sums, __m512 *tops)
{
    if (c->a->k_bits == 8)
        put_lanes(c, s, sums, t0, n_tiles, r0, n, apart, tile_sums, tops, false);
    else
        put_lanes(c, s, sums, t0, n_tiles, r0, n, apart, tile_sums, tops, true);
}

/* Row r of a block that begins with row r0. */
FL_INLINE weights softmax(const call *c, uint8_t *w, float *s, int r0, int r, int n_pages,
                          __m512 tops)
{
    return softmax_row(w + r * 64, &c->w, c->a->m + r0 + r, c->a->l + r0 + r,
                       s + r * FL_CODES_KEYS, max_lane(tops), n_pages * T, c->work.v_scale,
                       c->a->v_bits == 8 ? c->work.v_zero : NULL);
}

/* Lanes from `lane` on of rows [r0, r0 + n), n_tiles tiles of sums. */
FL_INLINE void put_values(const call *c, const weights *w, const int32_t *all, int lane,
                          int n_tiles, int r0, int n, int apart, int tile_sums)
{
    for (int r = 0; r < n; r++) {
        const __m512i zero_h = _mm512_set1_epi32(w[r].zero_h);
        const __m512i zero_l = _mm512_set1_epi32(w[r].zero_l);
        const __m512 step = _mm512_set1_ps(w[r].step);
        float *o = c->a->o + (int64_t)(r0 + r) * c->ld + lane;
        for (int i = 0; i < n_tiles; i++) {
            const int32_t *sums = all + i * tile_sums + r * LINE;
            _mm512_storeu_ps(o + 16 * i,
                             _mm512_mul_ps(total_of(sums, apart, zero_h, zero_l), step));
        }
    }
}

/* ---- few rows ---------------------------------------------------------------------------- */

/* Tiles of sums and digits have `rows` rows, those of codes 16. */
static void configure(int rows, const bool codes[8])
{
    tile_config c = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        c.row_bytes[t] = 64;
        c.rows[t] = codes[t] ? 16 : (uint8_t)rows;
    }
    __asm__ volatile("" ::"r"(&c) : "memory");
    _tile_loadconfig(&c);
}

/* tmm0..3: sums of a strip's lanes. */
FL_INLINE void zero_sums(void)
{
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

#define DP(acc, codes, is_signed)                                                              \
    do {                                                                                       \
        if (is_signed) _tile_dpbssd(acc, 4, codes);                                            \
        else _tile_dpbsud(acc, 4, codes);                                                      \
    } while (0)

FL_INLINE void add_tiles(const uint8_t *x, strip s, int n_tiles, bool is_signed)
{
    memory_barrier();
    _tile_loadd(4, x, 64);
    _tile_loadd(5, s.codes, s.stride);
    DP(0, 5, is_signed);
    if (n_tiles > 1) {
        _tile_loadd(6, s.codes + 64, s.stride);
        DP(1, 6, is_signed);
    }
    if (n_tiles > 2) {
        _tile_loadd(7, s.codes + 128, s.stride);
        DP(2, 7, is_signed);
    }
    if (n_tiles > 3) {
        _tile_loadd(5, s.codes + 192, s.stride);
        DP(3, 5, is_signed);
    }
}

#undef DP

static void add_strip(const uint8_t *x, strip s, int n_tiles, int bits)
{
    if (bits == 8) add_tiles(x, s, n_tiles, false);
    else add_tiles(x, s, n_tiles, true);
}

FL_INLINE void store_sums(int32_t *sums, int tile_sums)
{
    _tile_stored(0, sums, 4 * LINE);
    _tile_stored(1, sums + tile_sums, 4 * LINE);
    _tile_stored(2, sums + 2 * tile_sums, 4 * LINE);
    _tile_stored(3, sums + 3 * tile_sums, 4 * LINE);
    memory_barrier();
}

static void few_keys(const call *c, stream *ahead, __m512 *tops)
{
    const fl_attention_codes *a = c->a;
    const int apart = a->n_rows * LINE;
    const size_t page = fl__codes_page_bytes(a->D);
    load_key_grid(c, 0);
    spread_keys(c->work.k, a->k[0], a->D, a->k_bits);
    for (int p = 0; p < c->n_pages; p++) {
        const uint8_t *codes = c->work.k + p % RING * page;
        if (p + 1 < c->n_pages) {
            load_key_grid(c, p + 1);
            spread_keys(c->work.k + (p + 1) % RING * page, a->k[p + 1], a->D, a->k_bits);
        }
        zero_sums();
        for (int i = 0; 64 * i < a->D; i++)
            add_strip(c->rows + (size_t)i * c->x.step, key_strip(c, p, codes, i), 4, a->k_bits);
        store_sums(c->work.sums, DIGITS * apart);
        fetch(ahead, ahead->per_page);
        scores(c, c->work.s, c->work.sums, p * T, 4, 0, a->n_rows, apart, DIGITS * apart, tops);
    }
}

static void few_values(const call *c, stream *ahead, const weights *w)
{
    const fl_attention_codes *a = c->a;
    const int apart = a->n_rows * LINE, n = c->n_strips * c->n_pages;
    spread_values(c->work.v, a->v[0], a->D, a->v_bits, 0, strip_tiles(c, 0));
    for (int i = 0; i < n; i++) {
        const int p = i % c->n_pages, lane = i / c->n_pages * T, next = (i + 1) % c->n_pages;
        const int next_lane = (i + 1) / c->n_pages * T, n_tiles = strip_tiles(c, lane);
        if (i + 1 < n)
            spread_values(c->work.v + (i + 1) % RING * STRIP, a->v[next], a->D, a->v_bits,
                          next_lane, strip_tiles(c, next_lane));
        if (p == 0) zero_sums();
        add_strip(c->work.w + (size_t)p * c->w.step,
                  value_strip(c, p, c->work.v + i % RING * STRIP, lane), n_tiles, a->v_bits);
        fetch(ahead, ahead->per_strip);
        if (next != 0) continue;
        store_sums(c->work.sums, DIGITS * apart);
        put_values(c, w, c->work.sums, lane, n_tiles, 0, a->n_rows, apart, DIGITS * apart);
    }
}

static void few_rows(const call *c)
{
    static const bool codes[8] = {[5] = true, [6] = true, [7] = true};
    const int n_rows = c->a->n_rows;
    __m512 tops[FEW];
    weights w[FEW];
    stream ahead = stream_of(c->a, c->n_pages, c->n_strips);
    configure(DIGITS * n_rows, codes);
    for (int r = 0; r < n_rows; r++) tops[r] = _mm512_set1_ps(-INFINITY);
    few_keys(c, &ahead, tops);
    load_grids(c);
    for (int r = 0; r < n_rows; r++) {
        w[r] = softmax(c, c->work.w, c->work.s, 0, r, c->n_pages, tops[r]);
        fetch(&ahead, ahead.per_row);
    }
    few_values(c, &ahead, w);
    _tile_release();
}

/* ---- blocks of rows ---------------------------------------------------------------------- */

/* Sums of 16 rows x 32 lanes, or 16 lanes without `both`: n strips, of which the digits are
 * x_step and the codes step apart. */
FL_INLINE void half_strip(int32_t *sums, const uint8_t *x, size_t x_step, const strip *s, int n,
                          bool both, bool is_signed)
{
#define DP(acc)                                                                                \
    do {                                                                                       \
        if (is_signed) _tile_dpbssd(acc, 5, 6);                                                \
        else _tile_dpbsud(acc, 5, 6);                                                          \
    } while (0)
    const size_t digit = 64 * BLOCK;
    memory_barrier();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(7);
    for (int k = 0; k < n; k++, x += x_step) {
        _tile_loadd(6, s[k].codes, s[k].stride);
        _tile_loadd(5, x, 64);
        DP(0);
        _tile_loadd(5, x + digit, 64);
        DP(1);
        _tile_loadd(5, x + 2 * digit, 64);
        DP(2);
        if (!both) continue;
        _tile_loadd(6, s[k].codes + 64, s[k].stride);
        DP(7);
        _tile_loadd(5, x + digit, 64);
        DP(4);
        _tile_loadd(5, x, 64);
        DP(3);
    }
    _tile_stored(0, sums, 4 * LINE);
    _tile_stored(1, sums + TILE, 4 * LINE);
    _tile_stored(2, sums + 2 * TILE, 4 * LINE);
    _tile_stored(3, sums + 3 * TILE, 4 * LINE);
    _tile_stored(4, sums + 4 * TILE, 4 * LINE);
    _tile_stored(7, sums + 5 * TILE, 4 * LINE);
    memory_barrier();
#undef DP
}

static void sum_half(int32_t *sums, const uint8_t *x, size_t x_step, const strip *s, int n,
                     bool both, int bits)
{
    if (bits == 8) half_strip(sums, x, x_step, s, n, both, false);
    else if (both) half_strip(sums, x, x_step, s, n, true, true);
    else half_strip(sums, x, x_step, s, n, false, true);
}

static void spread_all(const call *c)
{
    const fl_attention_codes *a = c->a;
    for (int p = 0; p < c->n_pages; p++) {
        load_key_grid(c, p);
        spread_keys(c->work.k + (size_t)p * fl__codes_page_bytes(a->D), a->k[p], a->D,
                    a->k_bits);
        for (int i = 0; i < c->n_strips; i++)
            spread_values(c->work.v + (i * FL_CODES_PAGES + p) * STRIP, a->v[p], a->D,
                          a->v_bits, i * T, strip_tiles(c, i * T));
    }
    load_grids(c);
}

/* Sixteen rows, or the last ones: scores s and weights w of one lie beside those of the block
 * before it. */
typedef struct rows_block {
    const uint8_t *x;
    float *s;   /* [BLOCK][FL_CODES_KEYS] */
    uint8_t *w; /* prepared */
    int r0, n, n_pages;
    __m512 tops[BLOCK];
    weights left[BLOCK];
} rows_block;

static void block_init(const call *c, rows_block *b, int i)
{
    b->r0 = i * BLOCK;
    b->n = FL_MIN(BLOCK, c->a->n_rows - b->r0);
    b->n_pages = pages_seen(c->a, b->r0, b->n);
    b->x = c->rows + (size_t)i * c->x.block_bytes;
    b->s = c->work.s + i % 2 * BLOCK * FL_CODES_KEYS;
    b->w = c->work.w + i % 2 * BLOCK * FL_CODES_KEYS * FL_CODES_TERM_BYTES;
    for (int r = 0; r < b->n; r++) b->tops[r] = _mm512_set1_ps(-INFINITY);
}

/* Half a page of scores: sums only. */
static void sum_keys(const call *c, int32_t *sums, const rows_block *b, int half)
{
    const int n_steps = fl__codes_terms(c->a->D) / 64, p = half / 2;
    const uint8_t *codes = c->work.k + (size_t)p * fl__codes_page_bytes(c->a->D);
    strip s[FL_KV_MAX_D / 64];
    for (int i = 0; i < n_steps; i++) {
        s[i] = key_strip(c, p, codes, i);
        s[i].codes += half % 2 * 128;
    }
    sum_half(sums, b->x, c->x.step, s, n_steps, true, c->a->k_bits);
}

/* 32 lanes of values, or what is left of them, over all pages. */
static void sum_values(const call *c, int32_t *sums, const rows_block *b, int lane)
{
    const uint8_t *codes = c->work.v + lane / T * FL_CODES_PAGES * STRIP + 4 * (lane % T);
    strip s[FL_CODES_PAGES];
    for (int p = 0; p < b->n_pages; p++) s[p] = value_strip(c, p, codes + p * STRIP, lane);
    sum_half(sums, b->w, c->w.step, s, b->n_pages, lane + LINE < c->ld, c->a->v_bits);
}

/* The tiles' work beside one block's softmax: values of the block before, then scores of the
 * one behind; either may be missing. Pieces of it come in order, and each piece's sums are
 * turned into results when the next one has begun. */
typedef struct beside {
    rows_block *before, *behind;
    int n_values, n_all, done;
} beside;

static void finish(const call *c, const beside *t, int i)
{
    const int32_t *sums = c->work.sums + i % 2 * 2 * DIGITS * TILE;
    if (i < 0) return;
    if (i < t->n_values) {
        const int lane = i * 2 * LINE, n_tiles = lane + LINE < c->ld ? 2 : 1;
        put_values(c, t->before->left, sums, lane, n_tiles, t->before->r0, t->before->n, TILE,
                   DIGITS * TILE);
    } else {
        scores(c, t->behind->s, sums, (i - t->n_values) * 2 * LINE, 2, t->behind->r0,
               t->behind->n, TILE, DIGITS * TILE, t->behind->tops);
    }
}

static void go_on(const call *c, beside *t, int until)
{
    for (; t->done < until; t->done++) {
        int32_t *sums = c->work.sums + t->done % 2 * 2 * DIGITS * TILE;
        if (t->done < t->n_values) sum_values(c, sums, t->before, t->done * 2 * LINE);
        else sum_keys(c, sums, t->behind, t->done - t->n_values);
        finish(c, t, t->done - 1);
    }
}

/* Softmax is the vectors' work and takes longest; so the tiles' goes along, a share per row. */
static void stage(const call *c, rows_block *before, rows_block *now, rows_block *behind)
{
    beside t = {.before = before,
                .behind = behind,
                .n_values = before ? (c->ld + 2 * LINE - 1) / (2 * LINE) : 0};
    t.n_all = t.n_values + (behind ? 2 * behind->n_pages : 0);
    for (int r = 0; now && r < now->n; r++) {
        now->left[r] = softmax(c, now->w, now->s, now->r0, r, now->n_pages, now->tops[r]);
        go_on(c, &t, t.n_all * (r + 1) / now->n);
    }
    go_on(c, &t, t.n_all);
    finish(c, &t, t.n_all - 1);
}

static void blocks(const call *c)
{
    static const bool codes[8] = {[6] = true};
    const int n = (c->a->n_rows + BLOCK - 1) / BLOCK;
    rows_block b[3];
    configure(BLOCK, codes);
    spread_all(c);
    block_init(c, &b[0], 0);
    stage(c, NULL, NULL, &b[0]);
    for (int i = 0; i < n; i++) {
        if (i + 1 < n) block_init(c, &b[(i + 1) % 3], i + 1);
        stage(c, i > 0 ? &b[(i + 2) % 3] : NULL, &b[i % 3], i + 1 < n ? &b[(i + 1) % 3] : NULL);
    }
    stage(c, &b[(n + 2) % 3], NULL, NULL);
    _tile_release();
}

void fl__attention_codes_amx(const fl_attention_codes *a)
{
    const int rows = block_rows(a->n_rows), n_pages = pages_seen(a, 0, a->n_rows);
    const call c = {.a = a,
                    .work = fl__codes_work(a->work, a->D),
                    .x = layout_of(rows, fl__codes_terms(a->D)),
                    .w = layout_of(rows, FL_CODES_KEYS),
                    .rows = (const uint8_t *)a->x + fl__codes_heads_bytes(a->n_rows),
                    .n_pages = n_pages,
                    .n_strips = (a->D + T - 1) / T,
                    .ld = fl__attention_ld(a->D)};
    if (n_pages == 0) {
        for (int r = 0; r < a->n_rows; r++) {
            a->m[r] = -INFINITY;
            a->l[r] = 0;
            memset(a->o + (int64_t)r * c.ld, 0, (size_t)c.ld * sizeof *a->o);
        }
        return;
    }
    if (a->n_rows <= FEW) few_rows(&c);
    else blocks(&c);
}
