/* run_program.h - runs build/flatiron and keeps what it said. SPDX-License-Identifier: MIT */
#ifndef FL_TEST_RUN_PROGRAM_H
#define FL_TEST_RUN_PROGRAM_H

#include <stddef.h>

typedef struct fl_test_run_result {
    int exit_code;                   /* 128 + signal when one ended it */
    char out[1 << 16], err[1 << 14]; /* what fits, NUL-terminated */
    size_t n_out_bytes, n_err_bytes;
} fl_test_run_result;

/* args: the arguments, separated by single spaces; '~' in them stands for a space. env: NULL,
 * or NAME=VALUE settings separated by single spaces; FLATIRON_* of the test's own environment
 * are not passed on. The working directory is the test's own (fl_test_dir). */
void fl_test_run_program(fl_test_run_result *r, const char *args, const char *env);

#endif
