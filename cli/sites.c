/* sites.c - one line per layer and site. SPDX-License-Identifier: MIT */
#include "sites.h"

void cli_print_sites(const json_t *quantization)
{
    static const cli_column columns[] = {
        {.title = "layer", .path = "layer", .fmt = "%.0f"},
        {.title = "site", .path = "site"},
        {.title = "activation", .path = "activation"},
        {.title = "W", .path = "w_bits", .fmt = "%.0f"},
        {.title = "A", .path = "a_bits", .fmt = "%.0f"},
        {.title = "unsigned", .path = "unsigned"},
        {.title = "flatten %", .path = "flatten_ratio", .fmt = "%.2f", .factor = 100},
        {.title = "W digits %",
         .path = "weight_flatten_ratio",
         .fmt = "%.2f",
         .factor = 100},
        {.title = "A bits", .path = "effective_bits", .fmt = "%.2f"},
        {.title = "alpha", .path = "alpha", .fmt = "%.2f"},
        {.title = "threshold", .path = "threshold", .fmt = "%.4g"},
        {.title = "outliers", .path = "outlier_channels", .fmt = "%.0f"},
        {.title = "D_4", .path = "d4", .fmt = "%.4f"},
        {.title = "D_8", .path = "d8", .fmt = "%.5f"},
        {.title = "error", .path = "error_estimate", .fmt = "%.2e"},
    };
    cli_print_table(CLI_PLAIN, cli_json_at(quantization, "sites"), columns,
                    sizeof columns / sizeof *columns);
}
