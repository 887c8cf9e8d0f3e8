/* gemm_amx_micro.h - the tile unit alone: products, loads and stores in fixed mixtures, part of
 * gemm_amx_lab.c. SPDX-License-Identifier: MIT */
#ifndef LAB_GEMM_AMX_MICRO_H
#define LAB_GEMM_AMX_MICRO_H

typedef struct micro_cfg {
    const char *name;
    int a_bytes, b_bytes, load, dp, order, stream, pf, c_every, c_mode, b_stream, valu, vstore,
        zero, x; /* x 0: rows 4160 apart */
} micro_cfg;

/* n steps: a state machine of constant arguments. */
INL int64_t micro(const micro_cfg c, const int8_t *A, const uint8_t *B, int32_t *C, int n)
{
    const int64_t lda = c.x ? 64 : 4160;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_loadd(4, A, lda);
    _tile_loadd(5, A + 1024, lda);
    _tile_loadd(6, B, 64);
    _tile_loadd(7, B + 1024, 64);
    if (c.zero) {
        _tile_zero(4);
        _tile_zero(5);
        _tile_zero(6);
        _tile_zero(7);
    }
    for (int s = 0; s < n; s++) {
        const int64_t i = (int64_t)s * 2048 & (c.a_bytes - 1);
        /* rows as they lie: 64 steps, then the next 32 rows */
        const int8_t *a0 = c.x ? A + i : A + (i >> 17) * 32 * lda + (i >> 11 & 63) * 64;
        const int8_t *a1 = c.x ? a0 + 1024 : a0 + 16 * lda;
        const uint8_t *b0 = B + ((int64_t)s * 2048 & (c.b_bytes - 1)), *b1 = b0 + 1024;
        if (c.c_every && s % c.c_every == 0) {
            int32_t *to = C + ((s / c.c_every) & 7) * SUMS,
                    *from = C + ((s / c.c_every + 1) & 7) * SUMS;
#define MST(t) _tile_stored(t, to + t * 256, 64)
#define MLD(t) _tile_loadd(t, from + t * 256, 64)
            if (c.c_mode == 0) {
                MST(0);
                MST(1);
                MST(2);
                MST(3);
                MLD(0);
                MLD(1);
                MLD(2);
                MLD(3);
            }
            if (c.c_mode == 1) {
                MST(0);
                MLD(0);
                MST(1);
                MLD(1);
                MST(2);
                MLD(2);
                MST(3);
                MLD(3);
            }
            if (c.c_mode == 2) {
                MLD(0);
                MLD(1);
                MLD(2);
                MLD(3);
            }
            if (c.c_mode == 3) {
                MST(0);
                MST(1);
                MST(2);
                MST(3);
            }
            if (c.c_mode == 4) {
                MST(0);
                MST(1);
                MST(2);
                MST(3);
                _tile_zero(0);
                _tile_zero(1);
                _tile_zero(2);
                _tile_zero(3);
            }
        }
#define MA(t, p)                                                                               \
    do {                                                                                       \
        if (c.load & 1) {                                                                      \
            if (c.stream) _tile_stream_loadd(t, p, lda);                                       \
            else _tile_loadd(t, p, lda);                                                       \
        }                                                                                      \
    } while (0)
#define MB(t, p)                                                                               \
    do {                                                                                       \
        if (c.load & 2) {                                                                      \
            if (c.b_stream) _tile_stream_loadd(t, p, 64);                                      \
            else _tile_loadd(t, p, 64);                                                        \
        }                                                                                      \
    } while (0)
#define MD(C, A, B)                                                                            \
    do {                                                                                       \
        if (c.dp) _tile_dpbssd(C, A, B);                                                       \
    } while (0)
        if (c.order == 0) {
            MB(6, b0);
            MA(4, a0);
            MD(0, 4, 6);
            MB(7, b1);
            MD(1, 4, 7);
            MA(5, a1);
            MD(2, 5, 6);
            MD(3, 5, 7);
        } else if (c.order == 1) {
            MA(4, a0);
            MA(5, a1);
            MB(6, b0);
            MB(7, b1);
            MD(0, 4, 6);
            MD(2, 5, 6);
            MD(1, 4, 7);
            MD(3, 5, 7);
        } else { /* products one load behind */
            MA(4, a0);
            MD(2, 5, 6);
            MB(6, b0);
            MD(3, 5, 7);
            MA(5, a1);
            MD(0, 4, 6);
            MB(7, b1);
            MD(1, 4, 7);
        }
#ifndef EMU
        for (int i = 0; i < c.valu; i += 8) {
            __asm__ volatile(
                "vpaddd %%zmm0, %%zmm0, %%zmm0\n vpaddd %%zmm1, %%zmm1, %%zmm1\n vpaddd "
                "%%zmm2, %%zmm2, %%zmm2\n vpaddd %%zmm3, %%zmm3, %%zmm3\n"
                "vpaddd %%zmm4, %%zmm4, %%zmm4\n vpaddd %%zmm5, %%zmm5, %%zmm5\n vpaddd "
                "%%zmm6, %%zmm6, %%zmm6\n vpaddd %%zmm7, %%zmm7, %%zmm7\n" ::
                    : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7");
        }
        for (int i = 0; i < c.vstore; i++)
            __asm__ volatile("vmovdqa32 %%zmm8, %0"
                             : "=m"(C[16384 + ((s * c.vstore + i) & 255) * 16])::"memory");
#endif
        if (c.pf) {
            const int64_t f = (int64_t)(s + c.pf) * 2048 & (c.a_bytes - 1);
            for (int r = 0; r < 32; r++)
                _mm_prefetch((const char *)A + f + r * 64, _MM_HINT_T0);
        }
    }
    return n;
}

#define KB 1024
#define MICRO(X)                                                                               \
    X(tdp_rand, .dp = 1, .a_bytes = 2 * KB, .b_bytes = 2 * KB, .x = 1)                         \
    X(L1_o2, .dp = 1, .load = 3, .order = 2, .a_bytes = 8 * KB, .b_bytes = 8 * KB, .x = 1)     \
    X(tdp_zero, .dp = 1, .zero = 1, .a_bytes = 2 * KB, .b_bytes = 2 * KB, .x = 1)              \
    X(L1_c8_st_ld, .dp = 1, .load = 3, .order = 2, .a_bytes = 8 * KB, .b_bytes = 8 * KB,       \
      .c_every = 8, .c_mode = 0, .x = 1)                                                       \
    X(L1_c8_swap, .dp = 1, .load = 3, .order = 2, .a_bytes = 8 * KB, .b_bytes = 8 * KB,        \
      .c_every = 8, .c_mode = 1, .x = 1)                                                       \
    X(L1_c8_ld, .dp = 1, .load = 3, .order = 2, .a_bytes = 8 * KB, .b_bytes = 8 * KB,          \
      .c_every = 8, .c_mode = 2, .x = 1)                                                       \
    X(L1_c8_st, .dp = 1, .load = 3, .order = 2, .a_bytes = 8 * KB, .b_bytes = 8 * KB,          \
      .c_every = 8, .c_mode = 3, .x = 1)                                                       \
    X(L1_c8_st_zero, .dp = 1, .load = 3, .order = 2, .a_bytes = 8 * KB, .b_bytes = 8 * KB,     \
      .c_every = 8, .c_mode = 4, .x = 1)                                                       \
    X(L1_c16_st_ld, .dp = 1, .load = 3, .order = 2, .a_bytes = 8 * KB, .b_bytes = 8 * KB,      \
      .c_every = 16, .c_mode = 0, .x = 1)                                                      \
    X(L1_c16_swap, .dp = 1, .load = 3, .order = 2, .a_bytes = 8 * KB, .b_bytes = 8 * KB,       \
      .c_every = 16, .c_mode = 1, .x = 1)                                                      \
    X(L1_c16_ld, .dp = 1, .load = 3, .order = 2, .a_bytes = 8 * KB, .b_bytes = 8 * KB,         \
      .c_every = 16, .c_mode = 2, .x = 1)                                                      \
    X(L1_c16_st, .dp = 1, .load = 3, .order = 2, .a_bytes = 8 * KB, .b_bytes = 8 * KB,         \
      .c_every = 16, .c_mode = 3, .x = 1)                                                      \
    X(L1_c16_st_zero, .dp = 1, .load = 3, .order = 2, .a_bytes = 8 * KB, .b_bytes = 8 * KB,    \
      .c_every = 16, .c_mode = 4, .x = 1)                                                      \
    X(L1_c64_st_ld, .dp = 1, .load = 3, .order = 2, .a_bytes = 8 * KB, .b_bytes = 8 * KB,      \
      .c_every = 64, .c_mode = 0, .x = 1)                                                      \
    X(L1_c64_swap, .dp = 1, .load = 3, .order = 2, .a_bytes = 8 * KB, .b_bytes = 8 * KB,       \
      .c_every = 64, .c_mode = 1, .x = 1)                                                      \
    X(L1_c64_ld, .dp = 1, .load = 3, .order = 2, .a_bytes = 8 * KB, .b_bytes = 8 * KB,         \
      .c_every = 64, .c_mode = 2, .x = 1)                                                      \
    X(L1_c64_st, .dp = 1, .load = 3, .order = 2, .a_bytes = 8 * KB, .b_bytes = 8 * KB,         \
      .c_every = 64, .c_mode = 3, .x = 1)                                                      \
    X(L1_c64_st_zero, .dp = 1, .load = 3, .order = 2, .a_bytes = 8 * KB, .b_bytes = 8 * KB,    \
      .c_every = 64, .c_mode = 4, .x = 1)                                                      \
    X(Ast_B32k, .dp = 1, .load = 3, .order = 2, .stream = 1, .a_bytes = 1024 * KB,             \
      .b_bytes = 32 * KB, .x = 1)                                                              \
    X(Ast_B32k_c16_st_ld, .dp = 1, .load = 3, .order = 2, .stream = 1, .a_bytes = 1024 * KB,   \
      .b_bytes = 32 * KB, .c_every = 16, .x = 1)                                               \
    X(Ast_B32k_c16_swap, .dp = 1, .load = 3, .order = 2, .stream = 1, .a_bytes = 1024 * KB,    \
      .b_bytes = 32 * KB, .c_every = 16, .c_mode = 1, .x = 1)                                  \
    X(Ast_B16k_c8_swap, .dp = 1, .load = 3, .order = 2, .stream = 1, .a_bytes = 1024 * KB,     \
      .b_bytes = 16 * KB, .c_every = 8, .c_mode = 1, .x = 1)                                   \
    X(Ast_BL2, .dp = 1, .load = 3, .order = 2, .stream = 1, .a_bytes = 1024 * KB,              \
      .b_bytes = 128 * KB, .x = 1)                                                             \
    X(Ast_BstL2, .dp = 1, .load = 3, .order = 2, .stream = 1, .a_bytes = 1024 * KB,            \
      .b_bytes = 128 * KB, .b_stream = 1, .x = 1)                                              \
    X(L1_valu8, .dp = 1, .load = 3, .order = 2, .a_bytes = 8 * KB, .b_bytes = 8 * KB,          \
      .valu = 8, .x = 1)                                                                       \
    X(L1_valu16, .dp = 1, .load = 3, .order = 2, .a_bytes = 8 * KB, .b_bytes = 8 * KB,         \
      .valu = 16, .x = 1)                                                                      \
    X(L1_valu32, .dp = 1, .load = 3, .order = 2, .a_bytes = 8 * KB, .b_bytes = 8 * KB,         \
      .valu = 32, .x = 1)                                                                      \
    X(L1_valu64, .dp = 1, .load = 3, .order = 2, .a_bytes = 8 * KB, .b_bytes = 8 * KB,         \
      .valu = 64, .x = 1)                                                                      \
    X(L1_valu96, .dp = 1, .load = 3, .order = 2, .a_bytes = 8 * KB, .b_bytes = 8 * KB,         \
      .valu = 96, .x = 1)                                                                      \
    X(L1_vst4, .dp = 1, .load = 3, .order = 2, .a_bytes = 8 * KB, .b_bytes = 8 * KB,           \
      .vstore = 4, .x = 1)                                                                     \
    X(L1_vst8, .dp = 1, .load = 3, .order = 2, .a_bytes = 8 * KB, .b_bytes = 8 * KB,           \
      .vstore = 8, .x = 1)                                                                     \
    X(L1_vst16, .dp = 1, .load = 3, .order = 2, .a_bytes = 8 * KB, .b_bytes = 8 * KB,          \
      .vstore = 16, .x = 1)                                                                    \
    X(L1_vst32, .dp = 1, .load = 3, .order = 2, .a_bytes = 8 * KB, .b_bytes = 8 * KB,          \
      .vstore = 32, .x = 1)                                                                    \
    X(Ast_B16k_vst4_valu16, .dp = 1, .load = 3, .order = 2, .stream = 1, .a_bytes = 1024 * KB, \
      .b_bytes = 16 * KB, .vstore = 4, .valu = 16, .x = 1)

#define DEFINE_MICRO(f, ...)                                                                   \
    static __attribute__((noinline))                                                           \
    int64_t micro_##f(const int8_t *A, const uint8_t *B, int32_t *C, int n)                    \
    {                                                                                          \
        return micro((micro_cfg){__VA_ARGS__}, A, B, C, n);                                    \
    }
MICRO(DEFINE_MICRO)
typedef struct {
    const char *name;
    int64_t (*run)(const int8_t *, const uint8_t *, int32_t *, int);
} micro_row;
#define ROW_MICRO(f, ...) {#f, micro_##f},
static const micro_row micros[] = {MICRO(ROW_MICRO)};
enum { N_MICROS = sizeof micros / sizeof *micros };

#endif
