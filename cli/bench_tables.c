/* bench_tables.c - the tables of `flatiron bench model`. SPDX-License-Identifier: MIT */
#include "bench_tables.h"

#include <stdio.h>

/* clang-format off */
static const cli_column columns[] = {
    {.title = "model", .path = "model"},
    {.title = "phase", .path = "phase"},
    {.title = "ms", .path = "ms", .fmt = "%.3f"},
    {.title = "tokens/s", .path = "tokens_per_s", .fmt = "%.2f"},
    {.title = "x bf16", .path = "ratio_bf16", .fmt = "%.3f"},
    {.title = "of floor", .path = "fraction_of_floor", .fmt = "%.3f"},
    {.title = "floor", .path = "floor"},
    {.title = "floor ms", .path = "floor_ms", .fmt = "%.3f"},
    {.title = "ms per layer", .path = "ms_per_layer", .fmt = "%.4f"},
    {.title = "tokens/s, all layers", .path = "tokens_per_s_all_layers", .fmt = "%.2f"},
    {.title = "weights MB", .path = "weight_bytes", .fmt = "%.1f", .factor = 1e-6},
    {.title = "KV MB", .path = "kv_bytes", .fmt = "%.1f", .factor = 1e-6},
    {.title = "workspace MB", .path = "workspace_bytes", .fmt = "%.1f", .factor = 1e-6},
    /* time per part, from here on */
    {.title = "norm, transform, quantise", .path = "parts_ms.norm_transform_quantize",
     .fmt = "%.3f"},
    {.title = "GEMM qkv", .path = "parts_ms.gemm_qkv", .fmt = "%.3f"},
    {.title = "GEMM o", .path = "parts_ms.gemm_o", .fmt = "%.3f"},
    {.title = "GEMM up", .path = "parts_ms.gemm_up", .fmt = "%.3f"},
    {.title = "GEMM down", .path = "parts_ms.gemm_down", .fmt = "%.3f"},
    {.title = "attention", .path = "parts_ms.attention", .fmt = "%.3f"},
    {.title = "other", .path = "parts_ms.other", .fmt = "%.3f"},
    {.title = "head", .path = "parts_ms.head", .fmt = "%.3f"},
};
/* clang-format on */

enum { N_NAMES = 2, N_RATES = 13, N_COLUMNS = sizeof columns / sizeof *columns };

void bench_tables_print(const json_t *report, cli_table form)
{
    const json_t *rows = cli_json_at(report, "rows");
    cli_column parts[N_COLUMNS];
    int n = 0;
    if (form == CLI_CSV) {
        cli_print_table(form, rows, columns, N_COLUMNS);
        return;
    }
    cli_print_table(form, rows, columns, N_RATES);
    for (int i = 0; i < N_COLUMNS; i++)
        if (i < N_NAMES || i >= N_RATES) parts[n++] = columns[i];
    (void)printf("\nms per part:\n\n");
    cli_print_table(form, rows, parts, n);
}
