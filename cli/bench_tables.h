/* bench_tables.h - the tables of `flatiron bench model`. SPDX-License-Identifier: MIT */
#ifndef FL_CLI_BENCH_TABLES_H
#define FL_CLI_BENCH_TABLES_H

#include "print.h"

/* Rates, then time per part; for CLI_CSV both in one table. */
void bench_tables_print(const json_t *report, cli_table form);

#endif
