/* gemm_amx_variants.h - what gemm_amx_lab.c times: names and fields that are not 0.
 * SPDX-License-Identifier: MIT */
#ifndef LAB_GEMM_AMX_VARIANTS_H
#define LAB_GEMM_AMX_VARIANTS_H

#define VARIANTS(X)                                                                            \
    X(w4_k1024_pfc_none, .bits = 4, .ks = 16, .stream = 1, .cswap = 1, .pfc = 1, .order = 2,   \
      .x = 1, .rows = 256, .pfw = 1)                                                           \
    X(w4_k1024_pfc_roll_epi4_nt, .bits = 4, .ks = 16, .stream = 1, .cswap = 1, .pfc = 1,       \
      .order = 2, .x = 1, .expand = 3, .epi = 4, .pfy = 2, .rows = 256, .pfw = 1, .check = 1)  \
    X(w4_k512_pfc_roll_epi4_nt, .bits = 4, .ks = 8, .stream = 1, .cswap = 1, .pfc = 1,         \
      .order = 2, .x = 1, .expand = 3, .epi = 4, .pfy = 2, .rows = 256, .pfw = 1, .check = 1)  \
    X(w4_k1024_none_nopfw, .bits = 4, .ks = 16, .stream = 1, .cswap = 1, .order = 2, .x = 1,   \
      .rows = 256, .pfw = 0)                                                                   \
    X(w4_k1024_none_b128, .bits = 4, .ks = 16, .stream = 1, .cswap = 1, .order = 2, .x = 1,    \
      .rows = 128, .pfw = 1)                                                                   \
    X(w4_k4096_none, .bits = 4, .ks = 64, .stream = 1, .cswap = 1, .order = 2, .x = 1,         \
      .rows = 256, .pfw = 1)                                                                   \
    X(w8_k1024_pfc_epi4_nt, .bits = 8, .ks = 16, .stream = 1, .cswap = 1, .pfc = 1,            \
      .order = 2, .x = 1, .epi = 4, .pfy = 2, .rows = 256, .pfw = 1, .check = 1)               \
    X(w8_k1024_rows_pfc_epi4_nt, .bits = 8, .ks = 16, .stream = 1, .cswap = 1, .pfc = 1,       \
      .order = 2, .epi = 4, .pfy = 2, .rows = 256, .pfw = 1, .check = 1)                       \
    X(w4_k1024_rows_pfc_roll_epi4_nt, .bits = 4, .ks = 16, .stream = 1, .cswap = 1, .pfc = 1,  \
      .order = 2, .expand = 3, .epi = 4, .pfy = 2, .rows = 256, .pfw = 1, .check = 1)          \
    X(w4_now, .bits = 4, .ks = 64, .kb = 64, .n_item = 512, .expand = 1, .epi = 1,             \
      .rows = 256, .pfw = 1, .check = 1)                                                       \
    X(w4_k512_none, .bits = 4, .ks = 8, .stream = 1, .cswap = 1, .order = 2, .x = 1,           \
      .rows = 256, .pfw = 1)                                                                   \
    X(w4_k512_roll, .bits = 4, .ks = 8, .stream = 1, .cswap = 1, .order = 2, .x = 1,           \
      .expand = 3, .rows = 256, .pfw = 1)                                                      \
    X(w4_k512_roll_epi4_nt, .bits = 4, .ks = 8, .stream = 1, .cswap = 1, .order = 2, .x = 1,   \
      .expand = 3, .epi = 4, .pfy = 2, .rows = 256, .pfw = 1, .check = 1)                      \
    X(w4_k512_rows_roll_epi4_nt, .bits = 4, .ks = 8, .stream = 1, .cswap = 1, .order = 2,      \
      .expand = 3, .epi = 4, .pfy = 2, .rows = 256, .pfw = 1, .check = 1)                      \
    X(w8_k512_none, .bits = 8, .ks = 8, .stream = 1, .cswap = 1, .order = 2, .x = 1,           \
      .rows = 256, .pfw = 1)                                                                   \
    X(w8_k512_epi4_nt, .bits = 8, .ks = 8, .stream = 1, .cswap = 1, .order = 2, .x = 1,        \
      .epi = 4, .pfy = 2, .rows = 256, .pfw = 1, .check = 1)                                   \
    X(w8_k512_rows_epi4_nt, .bits = 8, .ks = 8, .stream = 1, .cswap = 1, .order = 2, .epi = 4, \
      .pfy = 2, .rows = 256, .pfw = 1, .check = 1)                                             \
    X(w4_k1024_none, .bits = 4, .ks = 16, .stream = 1, .cswap = 1, .order = 2, .x = 1,         \
      .rows = 256, .pfw = 1)                                                                   \
    X(w4_k1024_roll, .bits = 4, .ks = 16, .stream = 1, .cswap = 1, .order = 2, .x = 1,         \
      .expand = 3, .rows = 256, .pfw = 1)                                                      \
    X(w4_k1024_roll_epi4_nt, .bits = 4, .ks = 16, .stream = 1, .cswap = 1, .order = 2, .x = 1, \
      .expand = 3, .epi = 4, .pfy = 2, .rows = 256, .pfw = 1, .check = 1)                      \
    X(w4_k1024_rows_roll_epi4_nt, .bits = 4, .ks = 16, .stream = 1, .cswap = 1, .order = 2,    \
      .expand = 3, .epi = 4, .pfy = 2, .rows = 256, .pfw = 1, .check = 1)                      \
    X(w4_k1024_nocs_roll_epi4_nt, .bits = 4, .ks = 16, .stream = 1, .order = 2, .x = 1,        \
      .expand = 3, .epi = 4, .pfy = 2, .rows = 256, .pfw = 1, .check = 1)                      \
    X(w4_k1024_o1_roll_epi4_nt, .bits = 4, .ks = 16, .stream = 1, .cswap = 1, .order = 1,      \
      .x = 1, .expand = 3, .epi = 4, .pfy = 2, .rows = 256, .pfw = 1, .check = 1)              \
    X(w4_k1024_o0_roll_epi4_nt, .bits = 4, .ks = 16, .stream = 1, .cswap = 1, .order = 0,      \
      .x = 1, .expand = 3, .epi = 4, .pfy = 2, .rows = 256, .pfw = 1, .check = 1)              \
    X(w4_k1024_spread_epi4_nt, .bits = 4, .ks = 16, .stream = 1, .cswap = 1, .order = 2,       \
      .x = 1, .expand = 4, .epi = 4, .pfy = 2, .rows = 256, .pfw = 1, .check = 1)              \
    X(w4_k1024_jit_epi4_nt, .bits = 4, .ks = 16, .stream = 1, .cswap = 1, .order = 2, .x = 1,  \
      .expand = 2, .epi = 4, .pfy = 2, .rows = 256, .pfw = 1, .check = 1)                      \
    X(w4_k1024_roll_epi3_nt, .bits = 4, .ks = 16, .stream = 1, .cswap = 1, .order = 2, .x = 1, \
      .expand = 3, .epi = 3, .pfy = 2, .rows = 256, .pfw = 1, .check = 1)                      \
    X(w4_k1024_roll_epi4_pfy, .bits = 4, .ks = 16, .stream = 1, .cswap = 1, .order = 2,        \
      .x = 1, .expand = 3, .epi = 4, .pfy = 1, .rows = 256, .pfw = 1, .check = 1)              \
    X(w4_k1024_roll_epi4_plain, .bits = 4, .ks = 16, .stream = 1, .cswap = 1, .order = 2,      \
      .x = 1, .expand = 3, .epi = 4, .rows = 256, .pfw = 1, .check = 1)                        \
    X(w4_k1024_pack_roll_epi4_nt, .bits = 4, .ks = 16, .stream = 1, .cswap = 1, .order = 2,    \
      .x = 2, .expand = 3, .epi = 4, .pfy = 2, .rows = 256, .pfw = 1, .check = 1)              \
    X(w4_k1024_ld_roll_epi4_nt, .bits = 4, .ks = 16, .stream = 1, .cswap = 1, .order = 2,      \
      .ldk = 512, .expand = 3, .epi = 4, .pfy = 2, .rows = 256, .pfw = 1, .check = 1)          \
    X(w4_k1024_small_roll_epi4_nt, .bits = 4, .ks = 16, .stream = 1, .cswap = 1, .order = 2,   \
      .small = 1, .expand = 3, .epi = 4, .pfy = 2, .rows = 256, .pfw = 1, .check = 1)          \
    X(w4_k1024_r384_roll_epi4_nt, .bits = 4, .ks = 16, .stream = 1, .cswap = 1, .order = 2,    \
      .x = 1, .expand = 3, .epi = 4, .pfy = 2, .rows = 384, .pfw = 1, .check = 1)              \
    X(w4_k1024_r128_roll_epi4_nt, .bits = 4, .ks = 16, .stream = 1, .cswap = 1, .order = 2,    \
      .x = 1, .expand = 3, .epi = 4, .pfy = 2, .rows = 128, .pfw = 1, .check = 1)              \
    X(w8_k1024_none, .bits = 8, .ks = 16, .stream = 1, .cswap = 1, .order = 2, .x = 1,         \
      .rows = 256, .pfw = 1)                                                                   \
    X(w8_k1024_epi4_nt, .bits = 8, .ks = 16, .stream = 1, .cswap = 1, .order = 2, .x = 1,      \
      .epi = 4, .pfy = 2, .rows = 256, .pfw = 1, .check = 1)                                   \
    X(w8_k1024_rows_epi4_nt, .bits = 8, .ks = 16, .stream = 1, .cswap = 1, .order = 2,         \
      .epi = 4, .pfy = 2, .rows = 256, .pfw = 1, .check = 1)                                   \
    X(w8_k1024_pack_epi4_nt, .bits = 8, .ks = 16, .stream = 1, .cswap = 1, .order = 2, .x = 2, \
      .epi = 4, .pfy = 2, .rows = 256, .pfw = 1, .check = 1)                                   \
    X(w8_k1024_nopf_epi4_nt, .bits = 8, .ks = 16, .stream = 1, .cswap = 1, .order = 2, .x = 1, \
      .epi = 4, .pfy = 2, .rows = 256, .pfw = 0, .check = 1)                                   \
    X(w4_k2048_none, .bits = 4, .ks = 32, .stream = 1, .cswap = 1, .order = 2, .x = 1,         \
      .rows = 256, .pfw = 1)                                                                   \
    X(w4_k2048_roll, .bits = 4, .ks = 32, .stream = 1, .cswap = 1, .order = 2, .x = 1,         \
      .expand = 3, .rows = 256, .pfw = 1)                                                      \
    X(w4_k2048_roll_epi4_nt, .bits = 4, .ks = 32, .stream = 1, .cswap = 1, .order = 2, .x = 1, \
      .expand = 3, .epi = 4, .pfy = 2, .rows = 256, .pfw = 1, .check = 1)                      \
    X(w4_k2048_rows_roll_epi4_nt, .bits = 4, .ks = 32, .stream = 1, .cswap = 1, .order = 2,    \
      .expand = 3, .epi = 4, .pfy = 2, .rows = 256, .pfw = 1, .check = 1)                      \
    X(w8_k2048_none, .bits = 8, .ks = 32, .stream = 1, .cswap = 1, .order = 2, .x = 1,         \
      .rows = 256, .pfw = 1)                                                                   \
    X(w8_k2048_epi4_nt, .bits = 8, .ks = 32, .stream = 1, .cswap = 1, .order = 2, .x = 1,      \
      .epi = 4, .pfy = 2, .rows = 256, .pfw = 1, .check = 1)                                   \
    X(w8_k2048_rows_epi4_nt, .bits = 8, .ks = 32, .stream = 1, .cswap = 1, .order = 2,         \
      .epi = 4, .pfy = 2, .rows = 256, .pfw = 1, .check = 1)                                   \
    X(w8_now, .bits = 8, .ks = 64, .kb = 64, .n_item = 512, .epi = 1, .rows = 256, .pfw = 1,   \
      .check = 1)                                                                              \
    X(f4_k1024_roll_epi4_pfy0, .bits = 4, .ks = 16, .stream = 1, .cswap = 1, .order = 2,       \
      .x = 1, .expand = 3, .epi = 4, .f32 = 1, .pfy = 0, .rows = 256, .pfw = 1)                \
    X(f4_k1024_roll_epi4_pfy1, .bits = 4, .ks = 16, .stream = 1, .cswap = 1, .order = 2,       \
      .x = 1, .expand = 3, .epi = 4, .f32 = 1, .pfy = 1, .rows = 256, .pfw = 1)                \
    X(f4_k1024_roll_epi4_pfy2, .bits = 4, .ks = 16, .stream = 1, .cswap = 1, .order = 2,       \
      .x = 1, .expand = 3, .epi = 4, .f32 = 1, .pfy = 2, .rows = 256, .pfw = 1)                \
    X(w4_kb56_k1024_roll_epi4_nt_n512, .bits = 4, .ks = 16, .kb = 56, .stream = 1, .cswap = 1, \
      .order = 2, .x = 1, .expand = 3, .epi = 4, .pfy = 2, .n_item = 512, .rows = 256,         \
      .pfw = 1, .check = 1)                                                                    \
    X(w4_kb56_k1024_rows_roll_epi4_nt_n512, .bits = 4, .ks = 16, .kb = 56, .stream = 1,        \
      .cswap = 1, .order = 2, .expand = 3, .epi = 4, .pfy = 2, .n_item = 512, .rows = 256,     \
      .pfw = 1, .check = 1)                                                                    \
    X(w4_kb56_k1024_pack_roll_epi4_nt_n512, .bits = 4, .ks = 16, .kb = 56, .stream = 1,        \
      .cswap = 1, .order = 2, .x = 2, .expand = 3, .epi = 4, .pfy = 2, .n_item = 512,          \
      .rows = 256, .pfw = 1, .check = 1)                                                       \
    X(w4_kb64_k1024_roll_epi4_nt_n512, .bits = 4, .ks = 16, .kb = 64, .stream = 1, .cswap = 1, \
      .order = 2, .x = 1, .expand = 3, .epi = 4, .pfy = 2, .n_item = 512, .rows = 256,         \
      .pfw = 1, .check = 1)                                                                    \
    X(w4_kb64_k1024_rows_roll_epi4_nt_n512, .bits = 4, .ks = 16, .kb = 64, .stream = 1,        \
      .cswap = 1, .order = 2, .expand = 3, .epi = 4, .pfy = 2, .n_item = 512, .rows = 256,     \
      .pfw = 1, .check = 1)                                                                    \
    X(w4_kb64_k1024_pack_roll_epi4_nt_n512, .bits = 4, .ks = 16, .kb = 64, .stream = 1,        \
      .cswap = 1, .order = 2, .x = 2, .expand = 3, .epi = 4, .pfy = 2, .n_item = 512,          \
      .rows = 256, .pfw = 1, .check = 1)                                                       \
    X(w4_kb56_k1024_roll_epi4_nt_n1024, .bits = 4, .ks = 16, .kb = 56, .stream = 1,            \
      .cswap = 1, .order = 2, .x = 1, .expand = 3, .epi = 4, .pfy = 2, .n_item = 1024,         \
      .rows = 256, .pfw = 1, .check = 1)                                                       \
    X(w4_kb56_k1024_rows_roll_epi4_nt_n1024, .bits = 4, .ks = 16, .kb = 56, .stream = 1,       \
      .cswap = 1, .order = 2, .expand = 3, .epi = 4, .pfy = 2, .n_item = 1024, .rows = 256,    \
      .pfw = 1, .check = 1)                                                                    \
    X(w4_kb56_k1024_pack_roll_epi4_nt_n1024, .bits = 4, .ks = 16, .kb = 56, .stream = 1,       \
      .cswap = 1, .order = 2, .x = 2, .expand = 3, .epi = 4, .pfy = 2, .n_item = 1024,         \
      .rows = 256, .pfw = 1, .check = 1)                                                       \
    X(w4_kb64_k1024_roll_epi4_nt_n1024, .bits = 4, .ks = 16, .kb = 64, .stream = 1,            \
      .cswap = 1, .order = 2, .x = 1, .expand = 3, .epi = 4, .pfy = 2, .n_item = 1024,         \
      .rows = 256, .pfw = 1, .check = 1)                                                       \
    X(w4_kb64_k1024_rows_roll_epi4_nt_n1024, .bits = 4, .ks = 16, .kb = 64, .stream = 1,       \
      .cswap = 1, .order = 2, .expand = 3, .epi = 4, .pfy = 2, .n_item = 1024, .rows = 256,    \
      .pfw = 1, .check = 1)                                                                    \
    X(w4_kb64_k1024_pack_roll_epi4_nt_n1024, .bits = 4, .ks = 16, .kb = 64, .stream = 1,       \
      .cswap = 1, .order = 2, .x = 2, .expand = 3, .epi = 4, .pfy = 2, .n_item = 1024,         \
      .rows = 256, .pfw = 1, .check = 1)                                                       \
    X(w4_kb56_k1024_roll_epi4_nt_n2048, .bits = 4, .ks = 16, .kb = 56, .stream = 1,            \
      .cswap = 1, .order = 2, .x = 1, .expand = 3, .epi = 4, .pfy = 2, .n_item = 2048,         \
      .rows = 256, .pfw = 1, .check = 1)                                                       \
    X(w4_kb56_k1024_rows_roll_epi4_nt_n2048, .bits = 4, .ks = 16, .kb = 56, .stream = 1,       \
      .cswap = 1, .order = 2, .expand = 3, .epi = 4, .pfy = 2, .n_item = 2048, .rows = 256,    \
      .pfw = 1, .check = 1)                                                                    \
    X(w4_kb56_k1024_pack_roll_epi4_nt_n2048, .bits = 4, .ks = 16, .kb = 56, .stream = 1,       \
      .cswap = 1, .order = 2, .x = 2, .expand = 3, .epi = 4, .pfy = 2, .n_item = 2048,         \
      .rows = 256, .pfw = 1, .check = 1)                                                       \
    X(w4_kb64_k1024_roll_epi4_nt_n2048, .bits = 4, .ks = 16, .kb = 64, .stream = 1,            \
      .cswap = 1, .order = 2, .x = 1, .expand = 3, .epi = 4, .pfy = 2, .n_item = 2048,         \
      .rows = 256, .pfw = 1, .check = 1)                                                       \
    X(w4_kb64_k1024_rows_roll_epi4_nt_n2048, .bits = 4, .ks = 16, .kb = 64, .stream = 1,       \
      .cswap = 1, .order = 2, .expand = 3, .epi = 4, .pfy = 2, .n_item = 2048, .rows = 256,    \
      .pfw = 1, .check = 1)                                                                    \
    X(w4_kb64_k1024_pack_roll_epi4_nt_n2048, .bits = 4, .ks = 16, .kb = 64, .stream = 1,       \
      .cswap = 1, .order = 2, .x = 2, .expand = 3, .epi = 4, .pfy = 2, .n_item = 2048,         \
      .rows = 256, .pfw = 1, .check = 1)                                                       \
    X(w4_kb32_k1024_roll_epi4_nt_n1024, .bits = 4, .ks = 16, .kb = 32, .stream = 1,            \
      .cswap = 1, .order = 2, .x = 1, .expand = 3, .epi = 4, .pfy = 2, .n_item = 1024,         \
      .rows = 256, .pfw = 1, .check = 1)                                                       \
    X(w4_kb32_k1024_roll_epi4_nt_r512_n512, .bits = 4, .ks = 16, .kb = 32, .stream = 1,        \
      .cswap = 1, .order = 2, .x = 1, .expand = 3, .epi = 4, .pfy = 2, .n_item = 512,          \
      .rows = 512, .pfw = 1, .check = 1)                                                       \
    X(w8_kb56_k1024_epi4_nt_n1024, .bits = 8, .ks = 16, .kb = 56, .stream = 1, .cswap = 1,     \
      .order = 2, .x = 1, .epi = 4, .pfy = 2, .n_item = 1024, .rows = 256, .pfw = 1,           \
      .check = 1)

#endif
