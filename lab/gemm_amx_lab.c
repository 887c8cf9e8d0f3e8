/* gemm_amx_lab.c - variants of the AMX integer GEMM, timed in turn in one process.
 *
 *   gcc -O3 -static -pthread -ffp-contract=off -mavx512f -mavx512bw -mavx512dq -mavx512vl \
 *       -mamx-tile -mamx-int8 -o gemm_amx_lab gemm_amx_lab.c -lm
 *   gcc -O2 -DEMU -mavx2 -mfma -ffp-contract=off -Iemu -pthread ... (values only, any machine)
 *   taskset -c 0,1 ./gemm_amx_lab THREADS ROUNDS MxNxK ...
 *
 * Every variant is one constant argument of the same inline functions. Values: a small shape
 * against plain loops, whole; the timed shape: some rows against plain loops, all against the
 * first variant. Scratch: nothing here is product code. SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include <immintrin.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define INL       static inline __attribute__((always_inline))
#define BARRIER() __asm__ volatile("" ::: "memory")
#ifdef EMU
#define PREFETCHW(p) ((void)(p))
#else
#define PREFETCHW(p) __asm__ volatile("prefetchw %0" ::"m"(*(const char *)(p)))
#endif

typedef struct cfg {
    const char *name;
    int bits;
    int ks; /* steps of 64 channels in a chunk */
    int kb; /* steps in a K block, 0: all */
    int x;  /* 0 rows as they lie, 1 tile order, 2 rows packed to tile order by the thread */
    int stream; /* x through tileloaddt1 */
    int pf;     /* steps ahead x is prefetched to L1 */
    /* 0 none, 1 a chunk at once, 2 in the first row block, a step ahead, 3 the next chunk in
     * the last row block, in place, 4 the next chunk over all blocks, to another buffer */
    int expand;
    /* 0 none, 1 after the pair, 2 after a block, 3 beside the next block, 4 beside the next
     * pair */
    int epi;
    int pfy; /* y prefetched for writing */
    int order;  /* of loads and products */
    int rows;   /* of an item */
    int n_item; /* channels of an item */
    int ldk;    /* 0: rows K + 64 apart, else K + ldk */
    int small;  /* 1: x on 4 KB pages */
    int pfw;    /* weights: 0 none, 1 to L2, 2 to L1 */
    int cswap;  /* sums stored and the next block's loaded one by one */
    int pfc;    /* the next block's sums prefetched to L1 */
    int f32;    /* y float32, and read once after the product */
    int check;  /* values are whole */
} cfg;

typedef struct job {
    int M, N, K;
    const int8_t *x[4]; /* rows K + 64 apart; K + 512; K + 64 on small pages; unused */
    int64_t ldx[4];
    const int8_t *xt;
    const uint8_t *w4, *w8;
    const int32_t *x_sum;
    const float *x_scale, *w_scale;
    uint16_t *y;
    float *yf;
    uint8_t *scratch[2];
} job;

enum { SUMS = 1024, EXP_BYTES = 1 << 20, C_BYTES = 8 << 20, PACK_BYTES = 8 << 20 };

INL void configure(void)
{
    struct {
        uint8_t palette, start, r[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } c = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        c.bytes[t] = 64;
        c.rows[t] = 16;
    }
    __asm__ volatile("" ::"r"(&c) : "memory");
    _tile_loadconfig(&c);
}

/* ---- epilogue ---- */

typedef struct pending {
    const int32_t *s;
    int m, n, row, end; /* row = end: nothing left */
    int wait;           /* steps to the next row */
} pending;

INL __m512i bf16_high(__m512 y)
{
    const __m512i u = _mm512_castps_si512(y);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const __m512i bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
    const __m512i quiet = _mm512_or_si512(u, _mm512_set1_epi32(0x400000));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(y, y, _CMP_UNORD_Q);
    return _mm512_mask_blend_epi32(is_nan, _mm512_add_epi32(u, bias), quiet);
}

INL __m512i high_index(void)
{
    static const uint16_t odd[32] __attribute__((aligned(64))) = {
        1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
        33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
    return _mm512_load_si512(odd);
}

INL void epi_rows(const cfg c, const job *j, pending *p, int n_rows)
{
    if (p->row >= p->end) return;
    const __m512 w0 = _mm512_loadu_ps(j->w_scale + p->n),
                 w1 = _mm512_loadu_ps(j->w_scale + p->n + 16);
    for (int i = 0; i < n_rows && p->row < p->end; i++, p->row++) {
        const int m = p->m + p->row;
        const int32_t *s = p->s + (p->row >> 4) * 512 + (p->row & 15) * 16;
        if (c.epi == 4 && c.pfy == 1 && p->row + 12 < p->end) {
            if (c.f32) {
                PREFETCHW(j->yf + (int64_t)(m + 12) * j->N + p->n);
                PREFETCHW(j->yf + (int64_t)(m + 12) * j->N + p->n + 16);
            } else PREFETCHW(j->y + (int64_t)(m + 12) * j->N + p->n);
        }
        __m512i s0 = _mm512_load_si512(s), s1 = _mm512_load_si512(s + 256);
        if (c.bits == 4) {
            const __m512i off = _mm512_slli_epi32(_mm512_set1_epi32(j->x_sum[m]), 3);
            s0 = _mm512_sub_epi32(s0, off);
            s1 = _mm512_sub_epi32(s1, off);
        }
        const __m512 xs = _mm512_set1_ps(j->x_scale[m]);
        const __m512 y0 = _mm512_mul_ps(_mm512_cvtepi32_ps(s0), _mm512_mul_ps(xs, w0));
        const __m512 y1 = _mm512_mul_ps(_mm512_cvtepi32_ps(s1), _mm512_mul_ps(xs, w1));
        if (c.f32) {
            float *to = j->yf + (int64_t)m * j->N + p->n;
            if (c.pfy == 2) {
                _mm512_stream_ps(to, y0);
                _mm512_stream_ps(to + 16, y1);
            } else {
                _mm512_storeu_ps(to, y0);
                _mm512_storeu_ps(to + 16, y1);
            }
            continue;
        }
        const __m512i both =
            _mm512_permutex2var_epi16(bf16_high(y0), high_index(), bf16_high(y1));
        if (c.pfy == 2) _mm512_stream_si512((void *)(j->y + (int64_t)m * j->N + p->n), both);
        else _mm512_storeu_si512(j->y + (int64_t)m * j->N + p->n, both);
    }
}

/* ---- weights ---- */

INL void expand_lines(uint8_t *to, const uint8_t *from, int n_lines)
{
    const __m512i low = _mm512_set1_epi8(15);
    for (int i = 0; i < n_lines; i++, from += 64, to += 128) {
        const __m512i row = _mm512_load_si512(from);
        _mm512_store_si512(to, _mm512_and_si512(row, low));
        _mm512_store_si512(to + 64, _mm512_and_si512(_mm512_srli_epi16(row, 4), low));
    }
}

/* ---- one block: 32 rows x 32 channels x n steps ---- */

typedef struct operands {
    const int8_t *a0, *a1, *an0, *an1; /* x of this and of the next block */
    int64_t lda, a_step;
    const uint8_t *b0, *b1;
    int64_t b_step;
    const uint8_t *p0, *p1; /* packed weights, where this block expands them */
    uint8_t *e;             /* to here: [step][2][1024] */
    const char *next0, *next1;
    const uint16_t *y;      /* to prefetch, [32] rows */
    const uint8_t *q0, *q1; /* expand 4: lines to come, of each panel */
    uint8_t *qe;
    int n_q, at; /* lines a step; line of the chunk, of 16 a step: panel by panel */
    int n_lines;
    int32_t *sums_next; /* cswap */
    bool first_next;
    int interval; /* epi 4 */
} operands;

#define LOAD_A(t, p)                                                                           \
    do {                                                                                       \
        if (c.stream) _tile_stream_loadd(t, p, o->lda);                                        \
        else _tile_loadd(t, p, o->lda);                                                        \
    } while (0)
#define DP(C, A, B)                                                                            \
    do {                                                                                       \
        if (c.bits == 4) _tile_dpbsud(C, A, B);                                                \
        else _tile_dpbssd(C, A, B);                                                            \
    } while (0)

/* A state machine of constant arguments. */
INL void block(const cfg c, const job *j, int32_t *sums, bool first, operands *o, int n_steps,
               bool jit, bool roll, bool pfy, pending *p, int n_pf, bool keep)
{
    if (c.cswap) {
    } else if (first) {
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
    const int y_rows = (32 + n_steps - 1) / n_steps;
    if (jit) {
        expand_lines(o->e, o->p0, 8);
        expand_lines(o->e + 1024, o->p1, 8);
    }
    for (int s = 0; s < n_steps; s++) {
        const int8_t *a0 = o->a0 + s * o->a_step, *a1 = o->a1 + s * o->a_step;
        const uint8_t *b0 = o->b0 + s * o->b_step, *b1 = o->b1 + s * o->b_step;
        if (jit && s + 1 < n_steps) {
            expand_lines(o->e + (s + 1) * 2048, o->p0 + (s + 1) * 512, 8);
            expand_lines(o->e + (s + 1) * 2048 + 1024, o->p1 + (s + 1) * 512, 8);
        }
        BARRIER();
        if (c.order == 0) {
            _tile_loadd(6, b0, 64);
            LOAD_A(4, a0);
            DP(0, 4, 6);
            _tile_loadd(7, b1, 64);
            DP(1, 4, 7);
            LOAD_A(5, a1);
            DP(2, 5, 6);
            DP(3, 5, 7);
        } else if (c.order == 1) {
            LOAD_A(4, a0);
            LOAD_A(5, a1);
            _tile_loadd(6, b0, 64);
            _tile_loadd(7, b1, 64);
            DP(0, 4, 6);
            DP(2, 5, 6);
            DP(1, 4, 7);
            DP(3, 5, 7);
        } else {
            LOAD_A(4, a0);
            _tile_loadd(6, b0, 64);
            DP(0, 4, 6);
            LOAD_A(5, a1);
            DP(2, 5, 6);
            _tile_loadd(7, b1, 64);
            DP(1, 4, 7);
            DP(3, 5, 7);
        }
        if (c.pf) {
            const bool in = s + c.pf < n_steps;
            const int8_t *q0 =
                in ? a0 + c.pf * o->a_step : o->an0 + (s + c.pf - n_steps) * o->a_step;
            const int8_t *q1 =
                in ? a1 + c.pf * o->a_step : o->an1 + (s + c.pf - n_steps) * o->a_step;
            for (int r = 0; r < 16; r++) {
                _mm_prefetch((const char *)q0 + r * o->lda, _MM_HINT_T0);
                _mm_prefetch((const char *)q1 + r * o->lda, _MM_HINT_T0);
            }
        }
        if (c.pfw)
            for (int l = 0; l < n_pf; l++, o->next0 += 64, o->next1 += 64) {
                if (c.pfw == 1) {
                    _mm_prefetch(o->next0, _MM_HINT_T1);
                    _mm_prefetch(o->next1, _MM_HINT_T1);
                } else {
                    _mm_prefetch(o->next0, _MM_HINT_T0);
                    _mm_prefetch(o->next1, _MM_HINT_T0);
                }
            }
        if (pfy)
            for (int r = s * y_rows; r < (s + 1) * y_rows && r < 32; r++)
                PREFETCHW(o->y + (int64_t)r * j->N);
        if (c.pfc && !o->first_next) {
            const int n = (64 + n_steps - 1) / n_steps;
            for (int l = 0; l < n; l++)
                _mm_prefetch((const char *)o->sums_next + (s * n + l) * 64, _MM_HINT_T0);
        }
        if (c.expand == 3 && roll) {
            BARRIER();
            expand_lines(o->e + s * 2048, o->p0 + s * 512, 8);
            expand_lines(o->e + s * 2048 + 1024, o->p1 + s * 512, 8);
        }
        if (c.expand == 4) {
            for (int l = 0; l < o->n_q && o->at < o->n_lines; l++, o->at++) {
                /* line at & 7 of panel at / 8 % 2 of step at / 16 */
                const int step = o->at >> 4, panel = o->at >> 3 & 1, line = o->at & 7;
                expand_lines(o->qe + step * 2048 + panel * 1024 + line * 128,
                             (panel ? o->q1 : o->q0) + step * 512 + line * 64, 1);
            }
        }
        BARRIER();
        if (c.epi == 4 && p->row < p->end && --p->wait <= 0) {
            p->wait = o->interval;
            epi_rows(c, j, p, 1);
        }
        if (c.epi == 3 && p->row < p->end) epi_rows(c, j, p, y_rows);
    }
    if (c.cswap) {
#define SWAP(t)                                                                                \
    do {                                                                                       \
        _tile_stored(t, sums + t * 256, 64);                                                   \
        if (o->first_next) _tile_zero(t);                                                      \
        else _tile_loadd(t, o->sums_next + t * 256, 64);                                       \
    } while (0)
        SWAP(0);
        SWAP(1);
        SWAP(2);
        SWAP(3);
    } else if (keep) {
        _tile_stored(0, sums, 64);
        _tile_stored(1, sums + 256, 64);
        _tile_stored(2, sums + 512, 64);
        _tile_stored(3, sums + 768, 64);
    }
    BARRIER();
}

static void pack_x(int8_t *to, const int8_t *x, int64_t ldx, int n_rows, int n_steps)
{
    for (int m = 0; m < n_rows; m++) {
        int8_t *t = to + (int64_t)(m / 32) * n_steps * 2048 + m % 32 * 64;
        const int8_t *r = x + m * ldx;
        for (int s = 0; s < n_steps; s++)
            _mm512_store_si512(t + s * 2048, _mm512_load_si512(r + s * 64));
    }
}

/* x of rows m0.., steps from s0. */
INL operands x_at(const cfg c, const job *j, const int8_t *packed, int packed_steps, int m0,
                  int m, int s0, int s)
{
    operands o;
    const int n_steps = j->K / 64;
    if (c.x == 0) {
        const int i = c.ldk ? 1 : c.small ? 2 : 0;
        o.a0 = j->x[i] + (int64_t)(m0 + m) * j->ldx[i] + (int64_t)(s0 + s) * 64;
        o.a1 = o.a0 + 16 * j->ldx[i];
        o.lda = j->ldx[i];
        o.a_step = 64;
    } else {
        o.a0 = c.x == 1 ? j->xt + ((int64_t)((m0 + m) / 32) * n_steps + s0 + s) * 2048
                        : packed + ((int64_t)(m / 32) * packed_steps + s) * 2048;
        o.a1 = o.a0 + 1024;
        o.lda = 64;
        o.a_step = 2048;
    }
    return o;
}

/* An item and K block on its way. */
typedef struct walk {
    const job *j;
    int m0, m1, n0, k0, kn, ks, kb, n_ch, n_seq, n_blocks, n_steps;
    int64_t k_bytes, panel; /* of an input channel, of all, in one panel */
    const uint8_t *base;    /* weights from k0 on */
    int32_t *all_sums;
    int8_t *packed;
    uint8_t *scratch, *e[2];
    pending p;
} walk;

/* Chunk i of the item and K block: its weights, its steps, its pair's sums. */
INL const uint8_t *chunk_at(const walk *w, int i)
{
    return w->base + (int64_t)(w->n0 / 16 + i / w->n_ch * 2) * w->panel +
           (int64_t)(i % w->n_ch) * w->ks * 64 * w->k_bytes;
}

INL int chunk_steps(const walk *w, int i)
{
    const int left = w->kn - i % w->n_ch * w->ks;
    return left < w->ks ? left : w->ks;
}

INL int32_t *sums_at(const cfg c, const walk *w, int i)
{
    const int pair = i / w->n_ch;
    if (w->kb < w->n_steps) return w->all_sums + (int64_t)pair * w->n_blocks * SUMS;
    return w->all_sums + (c.epi == 4 ? (pair & 1) * w->n_blocks * SUMS : 0);
}

INL void expand_all(uint8_t *to, const uint8_t *from, int64_t panel, int s, int n_steps)
{
    for (; s < n_steps; s++) {
        expand_lines(to + s * 2048, from + s * 512, 8);
        expand_lines(to + s * 2048 + 1024, from + panel + s * 512, 8);
    }
}

/* Block b of chunk i: what it reads and what is to be done beside it. */
INL operands block_at(const cfg c, const walk *w, int i, int b, const char *next, int at)
{
    const job *j = w->j;
    const int s0 = i % w->n_ch * w->ks, n = w->n0 + i / w->n_ch * 32, n_now = chunk_steps(w, i);
    const uint8_t *p0 = chunk_at(w, i), *coming = i + 1 < w->n_seq ? chunk_at(w, i + 1) : p0;
    const bool more = b + 1 < w->n_blocks;
    operands o = x_at(c, j, w->packed, w->kn, w->m0, b * 32, w->k0, s0);
    const operands nx = x_at(c, j, w->packed, w->kn, w->m0, more ? (b + 1) * 32 : 0, w->k0,
                             more                 ? s0
                             : s0 + n_now < w->kn ? s0 + n_now
                                                  : 0);
    o.an0 = nx.a0;
    o.an1 = nx.a1;
    o.e = w->scratch;
    o.p0 = c.expand == 3 ? coming : p0;
    o.p1 = o.p0 + w->panel;
    o.b0 = c.bits == 8 ? p0 : c.expand == 4 ? w->e[i & 1] : w->scratch;
    o.b1 = o.b0 + (c.bits == 8 ? w->panel : 1024);
    o.b_step = c.bits == 8 ? 1024 : 2048;
    o.next0 = next;
    o.next1 = next + w->panel;
    o.y = j->y + (int64_t)(w->m0 + b * 32) * j->N + n;
    o.q0 = coming;
    o.q1 = coming + w->panel;
    o.qe = w->e[(i + 1) & 1];
    o.n_lines = 16 * (i + 1 < w->n_seq ? chunk_steps(w, i + 1) : n_now);
    o.n_q = (o.n_lines + w->n_blocks * n_now - 1) / (w->n_blocks * n_now);
    o.at = at;
    o.interval = w->kn / 32 > 0 ? w->kn / 32 : 1;
    o.sums_next = more ? sums_at(c, w, i) + (b + 1) * SUMS : sums_at(c, w, i + 1);
    o.first_next =
        more ? w->k0 + s0 == 0 : i + 1 >= w->n_seq || (w->k0 == 0 && (i + 1) % w->n_ch == 0);
    return o;
}

INL void run_chunk(const cfg c, walk *w, int i)
{
    const job *j = w->j;
    const int n = w->n0 + i / w->n_ch * 32, s0 = i % w->n_ch * w->ks, n_now = chunk_steps(w, i);
    const bool first = w->k0 + s0 == 0, last = w->k0 + s0 + n_now == w->n_steps;
    const bool pfy = c.pfy == 1 && c.epi != 4 && last;
    const int ahead = c.expand >= 3 ? 2 : 1;
    const char *next = (const char *)chunk_at(w, i + ahead < w->n_seq ? i + ahead : i);
    const int n_pf =
        ((int)w->k_bytes + w->n_blocks - 1) / w->n_blocks; /* lines of a panel a step */
    int32_t *sums = sums_at(c, w, i);
    pending *p = &w->p;
    int at = 0;
    if (c.bits == 4 && c.expand == 1)
        expand_all(w->scratch, chunk_at(w, i), w->panel, 0, n_now);
    BARRIER();
    for (int b = 0; b < w->n_blocks; b++) {
        operands o = block_at(c, w, i, b, next, at);
        int32_t *s = sums + b * SUMS;
        const bool jit = c.bits == 4 && c.expand == 2 && b == 0;
        const bool roll = c.expand == 3 && c.bits == 4 && b == w->n_blocks - 1;
        if (roll && i + 1 < w->n_seq)
            expand_all(o.e, o.p0, w->panel, n_now, chunk_steps(w, i + 1));
        if (jit) block(c, j, s, first, &o, n_now, true, false, pfy, p, n_pf, true);
        else if (roll) block(c, j, s, first, &o, n_now, false, true, pfy, p, n_pf, true);
        else block(c, j, s, first, &o, n_now, false, false, pfy, p, n_pf, true);
        next = o.next0;
        at = o.at;
        if (c.epi == 3) epi_rows(c, j, p, 32);
        if (last && (c.epi == 2 || c.epi == 3)) {
            *p = (pending){s, w->m0 + b * 32, n, 0, 32, 0};
            if (c.epi == 2) epi_rows(c, j, p, 32);
        }
    }
    for (int b = 0; last && c.epi == 1 && b < w->n_blocks; b++) {
        *p = (pending){sums + b * SUMS, w->m0 + b * 32, n, 0, 32, 0};
        epi_rows(c, j, p, 32);
    }
    if (last && c.epi == 4) {
        epi_rows(c, j, p, w->m1 - w->m0);
        *p = (pending){sums, w->m0, n, 0, w->m1 - w->m0, 0};
    }
}

INL void begin_sums(const cfg c, const walk *w)
{
    if (!c.cswap) return;
    BARRIER();
    if (w->k0 == 0) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, w->all_sums, 64);
        _tile_loadd(1, w->all_sums + 256, 64);
        _tile_loadd(2, w->all_sums + 512, 64);
        _tile_loadd(3, w->all_sums + 768, 64);
    }
}

/* Rows m0..m1 of all channels. */
INL void run_rows(const cfg c, const job *j, int m0, int m1, uint8_t *scratch)
{
    const int n_steps = j->K / 64, n_item = c.n_item && c.n_item < j->N ? c.n_item : j->N;
    walk w = {.j = j,
              .m0 = m0,
              .m1 = m1,
              .n_blocks = (m1 - m0) / 32,
              .n_steps = n_steps,
              .ks = c.ks < n_steps ? c.ks : n_steps,
              .kb = c.kb && c.kb < n_steps ? c.kb : n_steps,
              .k_bytes = c.bits * 2,
              .panel = (int64_t)j->K * c.bits * 2,
              .all_sums = (int32_t *)(scratch + EXP_BYTES),
              .packed = (int8_t *)scratch + EXP_BYTES + C_BYTES,
              .scratch = scratch,
              .p = {.row = 32, .end = 32}};
    w.e[0] = scratch;
    w.e[1] = scratch + (c.expand == 4 ? w.ks * 2048 : 0);
    for (w.n0 = 0; w.n0 < j->N; w.n0 += n_item)
        for (w.k0 = 0; w.k0 < n_steps; w.k0 += w.kb) {
            const int n_end = w.n0 + n_item < j->N ? w.n0 + n_item : j->N;
            w.kn = n_steps - w.k0 < w.kb ? n_steps - w.k0 : w.kb;
            w.n_ch = (w.kn + w.ks - 1) / w.ks;
            w.n_seq = (n_end - w.n0) / 32 * w.n_ch;
            w.base = (c.bits == 4 ? j->w4 : j->w8) + (int64_t)w.k0 * 64 * w.k_bytes;
            if (c.x == 2 && (w.n0 == 0 || w.kb < n_steps))
                pack_x(w.packed, j->x[0] + m0 * j->ldx[0] + w.k0 * 64, j->ldx[0], m1 - m0,
                       w.kn);
            if (c.bits == 4 && c.expand >= 3)
                expand_all(w.e[0], chunk_at(&w, 0), w.panel, 0, chunk_steps(&w, 0));
            begin_sums(c, &w);
            for (int i = 0; i < w.n_seq; i++) run_chunk(c, &w, i);
        }
    if (c.epi >= 3) epi_rows(c, j, &w.p, m1 - m0);
}

INL void run_thread(const cfg c, const job *j, int t, int n_threads)
{
    const int a = (int)((int64_t)j->M / 32 * t / n_threads) * 32,
              b = (int)((int64_t)j->M / 32 * (t + 1) / n_threads) * 32;
    configure();
    for (int m = a; m < b; m += c.rows)
        run_rows(c, j, m, m + c.rows < b ? m + c.rows : b, j->scratch[t]);
    _tile_release();
    if (c.f32) { /* what comes next reads y */
        __m512 sum = _mm512_setzero_ps();
        for (int64_t i = (int64_t)a * j->N; i < (int64_t)b * j->N; i += 16)
            sum = _mm512_add_ps(sum, _mm512_load_ps(j->yf + i));
        _mm512_storeu_ps((float *)j->scratch[t], sum);
    }
}

/* ---- variants ---- */

#include "gemm_amx_variants.h"

#pragma GCC diagnostic ignored "-Woverride-init"
#define DEFINE(f, ...)                                                                         \
    static const cfg cfg_##f = {.name = #f, __VA_ARGS__};                                      \
    static __attribute__((noinline)) void run_##f(const job *j, int t, int n_threads)          \
    {                                                                                          \
        run_thread((cfg){.name = #f, __VA_ARGS__}, j, t, n_threads);                           \
    }
VARIANTS(DEFINE)
typedef struct {
    const cfg *c;
    void (*run)(const job *, int, int);
} variant;
#define ROW(f, ...) {&cfg_##f, run_##f},
static const variant variants[] = {VARIANTS(ROW)};
enum { N_VARIANTS = sizeof variants / sizeof *variants };

#include "gemm_amx_micro.h"

static uint64_t rng(void);

/* ---- threads ---- */

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static struct {
    _Atomic int go, done;
    int n_threads;
    const variant *v;
    const micro_row *micro;
    int micro_steps;
    const job *j;
} team;
static uint8_t *micro_mem[2];

static void work(int t)
{
    if (team.micro) {
        configure();
        team.micro->run((const int8_t *)micro_mem[t], micro_mem[t] + (4 << 20),
                        (int32_t *)(micro_mem[t] + (6 << 20)), team.micro_steps);
        _tile_release();
    } else {
        team.v->run(team.j, t, team.n_threads);
    }
}

static cpu_set_t all_cpus; /* that the process began with */

static void pin(int t)
{
    cpu_set_t one;
    for (int cpu = 0, i = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &all_cpus) && i++ == t) {
            CPU_ZERO(&one);
            CPU_SET(cpu, &one);
            sched_setaffinity(0, sizeof one, &one);
            return;
        }
}

static void *helper(void *arg)
{
    int seen = 0;
    (void)arg;
    pin(1);
    for (;;) {
        int g;
        while ((g = atomic_load(&team.go)) == seen) _mm_pause();
        seen = g;
        if (g < 0) return NULL;
        work(1);
        atomic_fetch_add(&team.done, 1);
    }
}

static double run_team(int n_threads)
{
    const double start = now();
    team.n_threads = n_threads;
    atomic_store(&team.done, 0);
    if (n_threads > 1) atomic_fetch_add(&team.go, 1);
    work(0);
    while (n_threads > 1 && atomic_load(&team.done) == 0) _mm_pause();
    return now() - start;
}

/* 2 x 2 products from L1 for a tenth of a millisecond: slow where a neighbour has the core. */
static double probe_s(int n_threads)
{
    const variant *v = team.v;
    team.micro = &micros[1];
    team.micro_steps = 1 << 12;
    const double s = run_team(n_threads);
    team.micro = NULL;
    team.v = v;
    return s;
}

/* ---- data ---- */

static void *big(size_t n, int huge)
{
    const size_t align = 2 << 20;
    n = (n + align - 1) / align * align + align;
    uint8_t *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        perror("mmap");
        exit(1);
    }
    p += (align - (uintptr_t)p % align) % align;
    madvise(p, n - align, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    return p;
}

static uint64_t rng_state = 88172645463325252u;
static uint64_t rng(void)
{
    rng_state ^= rng_state << 13;
    rng_state ^= rng_state >> 7;
    rng_state ^= rng_state << 17;
    return rng_state;
}

static int code(const job *j, int bits, int n, int k)
{
    if (bits == 8)
        return (int8_t)
            j->w8[((int64_t)(n / 16) * (j->K / 4) + k / 4) * 64 + n % 16 * 4 + k % 4];
    const uint8_t b = j->w4[((int64_t)(n / 16) * (j->K / 8) + k / 8) * 64 + n % 16 * 4 + k % 4];
    return (k % 8 < 4 ? b & 15 : b >> 4) - 8;
}

static uint16_t bf16(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

static bool row_equal(const job *j, int bits, int m)
{
    int32_t *acc = calloc((size_t)j->N, 4);
    for (int n = 0; n < j->N; n++)
        for (int k = 0; k < j->K; k++)
            acc[n] += j->x[0][m * j->ldx[0] + k] * code(j, bits, n, k);
    bool ok = true;
    for (int n = 0; n < j->N; n++)
        ok = ok && bf16((float)acc[n] * (j->x_scale[m] * j->w_scale[n])) ==
                       j->y[(int64_t)m * j->N + n];
    free(acc);
    return ok;
}

static job job_new(int M, int N, int K)
{
    job j = {.M = M, .N = N, .K = K};
    static uint8_t *scratch[2];
    int8_t *xs[3], *xt = big((size_t)M * (size_t)K, 1);
    j.ldx[0] = j.ldx[2] = K + 64;
    j.ldx[1] = K + 512;
    for (int i = 0; i < 3; i++) {
        xs[i] = big((size_t)(M * j.ldx[i]), i < 2);
        j.x[i] = xs[i];
    }
    uint8_t *w4 = big((size_t)N * (size_t)K / 2, 1), *w8 = big((size_t)N * (size_t)K, 1);
    int32_t *x_sum = calloc((size_t)M, 4);
    float *x_scale = calloc((size_t)M, 4), *w_scale = calloc((size_t)N, 4);
    for (int m = 0; m < M; m++) {
        x_scale[m] = 0.01f + 0.0001f * (float)(m % 17);
        for (int k = 0; k < K; k++) {
            const int8_t v = (int8_t)(rng() >> 56);
            for (int i = 0; i < 3; i++) xs[i][m * j.ldx[i] + k] = v;
            xt[((int64_t)(m / 32) * (K / 64) + k / 64) * 2048 + m % 32 * 64 + k % 64] = v;
            x_sum[m] += v;
        }
    }
    for (int64_t i = 0; i < (int64_t)N * K; i++) {
        w8[i] = (uint8_t)(rng() >> 56);
        if (w8[i] == 128) w8[i] = 0;
        if (i % 2) w4[i / 2] = (uint8_t)(rng() >> 48);
    }
    for (int n = 0; n < N; n++) w_scale[n] = 0.001f + 0.00001f * (float)(n % 64);
    for (int t = 0; t < 2; t++)
        if (!scratch[t]) scratch[t] = big(EXP_BYTES + C_BYTES + PACK_BYTES, 1);
    j.xt = xt;
    j.w4 = w4;
    j.w8 = w8;
    j.x_sum = x_sum;
    j.x_scale = x_scale;
    j.w_scale = w_scale;
    j.y = big((size_t)M * (size_t)N * 2, 1);
    j.yf = big((size_t)M * (size_t)N * 4, 1);
    j.scratch[0] = scratch[0];
    j.scratch[1] = scratch[1];
    return j;
}

/* job's buffers: the process ends soon; large ones are given back. */
static void job_free(job *j)
{
    munmap((void *)(uintptr_t)j->w8, (size_t)j->N * (size_t)j->K);
    munmap((void *)(uintptr_t)j->w4, (size_t)j->N * (size_t)j->K / 2);
    munmap((void *)(uintptr_t)j->xt, (size_t)j->M * (size_t)j->K);
    for (int i = 0; i < 3; i++) munmap((void *)(uintptr_t)j->x[i], (size_t)(j->M * j->ldx[i]));
    munmap(j->y, (size_t)j->M * (size_t)j->N * 2);
    munmap(j->yf, (size_t)j->M * (size_t)j->N * 4);
}

static int cmp(const void *a, const void *b)
{
    return (*(const double *)a > *(const double *)b) -
           (*(const double *)a < *(const double *)b);
}

static bool fits(const cfg *c, const job *j, const char *filter)
{
    const int n_steps = j->K / 64, kb = c->kb && c->kb < n_steps ? c->kb : n_steps;
    const int64_t n = c->n_item && c->n_item < j->N ? c->n_item : j->N;
    if (filter && !strstr(c->name, filter) && strcmp(c->name + 2, "_now")) return false;
    if ((int64_t)kb * 64 * c->rows > (c->x == 2 ? PACK_BYTES : INT64_MAX / 2)) return false;
    if (kb < n_steps && n / 32 * (c->rows / 32) * SUMS * 4 > C_BYTES) return false;
    return (c->ks < kb ? c->ks : kb) * 2048 <= EXP_BYTES;
}

static int check_all(int M, int N, int K, int n_threads)
{
    job j = job_new(M, N, K);
    int bad = 0, n = 0;
    team.j = &j;
    for (int i = 0; i < N_VARIANTS; i++) {
        if (!variants[i].c->check || !fits(variants[i].c, &j, NULL)) continue;
        memset(j.y, 0x55, (size_t)M * (size_t)N * 2);
        team.v = &variants[i];
        run_team(n_threads);
        n++;
        for (int m = 0; m < M; m++)
            if (!row_equal(&j, variants[i].c->bits, m)) {
                printf("WRONG %s %dx%dx%d row %d\n", variants[i].c->name, M, N, K, m);
                bad++;
                break;
            }
    }
    printf("check %dx%dx%d, %d threads: %d variants, %d wrong\n", M, N, K, n_threads, n, bad);
    job_free(&j);
    return bad;
}

static void time_shape(int M, int N, int K, int n_threads, int rounds, const char *filter)
{
    static double t[N_VARIANTS + 1][64], quiet_t[N_VARIANTS][64], probe[N_VARIANTS][64];
    double best_probe = 1e9;
    job j = job_new(M, N, K);
    uint16_t *first[2] = {0};
    const double ops = 2.0 * M * N * K;
    const int peak_steps = (int)(ops / n_threads / 131072 / 2);
    bool right[N_VARIANTS];
    team.j = &j;
    for (int i = 0; i < N_VARIANTS; i++) {
        const cfg *c = variants[i].c;
        right[i] = true;
        if (!fits(c, &j, filter)) continue;
        team.v = &variants[i];
        run_team(n_threads);
        if (!c->check) continue;
        uint16_t **f = &first[c->bits == 8];
        const size_t n = (size_t)M * (size_t)N * 2;
        if (!*f) {
            *f = big(n, 1);
            memcpy(*f, j.y, n);
            for (int m = 1; m < M; m += M / 3) right[i] = right[i] && row_equal(&j, c->bits, m);
        } else {
            right[i] = memcmp(*f, j.y, n) == 0;
        }
        memset(j.y, 0x55, n);
    }
    for (int r = 0; r < rounds; r++) {
        team.micro = &micros[0];
        team.micro_steps = peak_steps;
        t[N_VARIANTS][r] = run_team(n_threads) * 2;
        team.micro = NULL;
        for (int i = 0; i < N_VARIANTS; i++) {
            if (!fits(variants[i].c, &j, filter)) continue;
            team.v = &variants[i];
            double before = probe_s(n_threads);
            t[i][r] = run_team(n_threads);
            const double after = probe_s(n_threads);
            if (before < best_probe) best_probe = before;
            if (after < best_probe) best_probe = after;
            probe[i][r] = before > after ? before : after;
        }
    }
    qsort(t[N_VARIANTS], (size_t)rounds, sizeof(double), cmp);
    const double peak = t[N_VARIANTS][rounds / 2];
    printf("# %dx%dx%d, %d threads, %d rounds, TDPBSSD %.2f TOPS (best %.2f): ms median, best, "
           "TOPS, of peak\n",
           M, N, K, n_threads, rounds, ops / peak * 1e-12, ops / t[N_VARIANTS][0] * 1e-12);
    for (int i = 0; i < N_VARIANTS; i++) {
        if (!fits(variants[i].c, &j, filter)) continue;
        int n_quiet = 0;
        for (int r = 0; r < rounds; r++)
            if (probe[i][r] < 1.2 * best_probe) quiet_t[i][n_quiet++] = t[i][r];
        qsort(quiet_t[i], (size_t)n_quiet, sizeof(double), cmp);
        qsort(t[i], (size_t)rounds, sizeof(double), cmp);
        const double m = t[i][rounds / 2], q = n_quiet ? quiet_t[i][n_quiet / 2] : 0;
        printf("%-38s %7.3f %7.3f %6.2f %6.3f | quiet %2d %7.3f %6.3f%s\n", variants[i].c->name,
               m * 1e3, t[i][0] * 1e3, ops / m * 1e-12, peak / m, n_quiet, q * 1e3,
               n_quiet ? peak / q : 0,
               !variants[i].c->check ? " (no values)"
               : right[i]            ? ""
                                     : " WRONG");
    }
    fflush(stdout);
    for (int i = 0; i < 2; i++)
        if (first[i]) munmap(first[i], (size_t)M * (size_t)N * 2);
    job_free(&j);
}

static void time_micros(int n_threads, int rounds)
{
    static double t[N_MICROS][64];
    const int n = 1 << 15;
    team.micro_steps = n;
    for (int r = -1; r < rounds; r++)
        for (int i = 0; i < N_MICROS; i++) {
            team.micro = &micros[i];
            const double s = run_team(n_threads);
            if (r >= 0) t[i][r] = s;
        }
    team.micro = NULL;
    printf("# tile unit, %d threads: clocks per step of 4 products (64 at peak, from the tdp "
           "rate), of peak\n",
           n_threads);
    for (int i = 0; i < N_MICROS; i++) {
        qsort(t[i], (size_t)rounds, sizeof(double), cmp);
        const double m = t[i][rounds / 2], peak = t[0][rounds / 2];
        printf("%-24s %7.1f %6.3f  (%.3f ms)\n", micros[i].name, 64 * m / peak, peak / m,
               m * 1e3);
    }
    fflush(stdout);
}

int main(int argc, char **argv)
{
#ifndef EMU
    if (syscall(SYS_arch_prctl, 0x1023, 18)) {
        puts("no AMX");
        return 1;
    }
#endif
    const int n_threads = argc > 1 && argv[1][0] == '1' ? 1 : 2;
    const int rounds = argc > 2 ? (int)strtol(argv[2], NULL, 10) : 9; /* at most 64 */
    const char *filter = NULL;
    pthread_t th;
    for (int t = 0; t < 2; t++) {
        micro_mem[t] = big(8 << 20, 1);
        for (int i = 0; i < 8 << 20; i += 8) {
            const uint64_t r = rng();
            memcpy(micro_mem[t] + i, &r, 8);
        }
    }
    if (sched_getaffinity(0, sizeof all_cpus, &all_cpus)) return 1;
    pin(0);
    if (n_threads > 1) pthread_create(&th, NULL, helper, NULL);
    for (int i = 3; i < argc; i++) {
        int M, N, K;
        if (!strcmp(argv[i], "probe")) { /* the first core: median, ninth decile */
            double p[200];
            probe_s(1);
            for (int r = 0; r < 200; r++) p[r] = probe_s(1);
            qsort(p, 200, sizeof *p, cmp);
            printf("probe %.3f %.3f\n", p[100] * 1e3, p[180] * 1e3);
        } else if (!strcmp(argv[i], "micro")) time_micros(n_threads, rounds);
        else if (!strncmp(argv[i], "filter=", 7)) filter = argv[i][7] ? argv[i] + 7 : NULL;
        else if (sscanf(argv[i], "check=%dx%dx%d", &M, &N, &K) == 3) {
            if (check_all(M, N, K, n_threads)) return 1;
        } else if (sscanf(argv[i], "%dx%dx%d", &M, &N, &K) == 3)
            time_shape(M, N, K, n_threads, rounds, filter);
    }
    if (n_threads > 1) {
        atomic_store(&team.go, -1);
        pthread_join(th, NULL);
    }
    return 0;
}
