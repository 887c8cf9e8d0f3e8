/* ck.c - counting, guards, and main of check_kernels. SPDX-License-Identifier: MIT */
#include "check/ck.h"

#include "base/mem.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GUARD        256
#define POISON       0xa5
#define MAX_PRINTED  5

bool ck_begin(ck *t, const char *name)
{
    if (t->filter && !strstr(name, t->filter)) return false;
    t->name = name;
    t->n_complaints = 0;
    return true;
}

void ck_end(ck *t)
{
    const bool ok = t->n_complaints == 0;
    if (ok)
        t->n_passed++;
    else
        t->n_failed++;
    if (t->n_complaints > MAX_PRINTED)
        printf("  ... and %d more\n", t->n_complaints - MAX_PRINTED);
    printf("%-7s %s\n", ok ? "OK" : "FAILED", t->name);
}

void ck_skip(ck *t, const char *name, const char *why)
{
    if (t->filter && !strstr(name, t->filter)) return;
    t->n_skipped++;
    printf("%-7s %s: %s\n", "SKIP", name, why);
}

void ck_complain(ck *t, const char *fmt, ...)
{
    va_list ap;
    if (t->n_complaints++ >= MAX_PRINTED) return;
    printf("  %s: ", t->name);
    va_start(ap, fmt);
    (void)vprintf(fmt, ap);
    va_end(ap);
    printf("\n");
}

ck_buf ck_buf_new(size_t n_bytes)
{
    ck_buf b = {.n_bytes = n_bytes};
    b.block = fl__alloc(n_bytes + 2 * GUARD, 1);
    if (!b.block) {
        printf("check_kernels: out of memory: %zu bytes wanted\n", n_bytes);
        exit(EXIT_FAILURE);
    }
    memset(b.block, POISON, n_bytes + 2 * GUARD);
    b.data = b.block + GUARD;
    return b;
}

void ck_buf_free(ck_buf *b)
{
    fl__free(&b->block);
    b->data = NULL;
}

void ck_buf_poison(ck_buf *b)
{
    memset(b->data, POISON, b->n_bytes);
}

bool ck_buf_intact(const ck_buf *b)
{
    for (size_t i = 0; i < GUARD; i++)
        if (b->block[i] != POISON || b->block[GUARD + b->n_bytes + i] != POISON) return false;
    return true;
}

int ck_int(fl_rng *rng, int lo, int hi)
{
    return lo + (int)fl__rng_below(rng, (uint64_t)(hi - lo + 1));
}

/* Value of --name=value, or NULL. */
static const char *option(const char *arg, const char *name)
{
    const size_t len = strlen(name);
    return strncmp(arg, name, len) == 0 && arg[len] == '=' ? arg + len + 1 : NULL;
}

static bool parse(ck *t, uint32_t *required, int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        const char *isa = option(argv[i], "--isa"), *require = option(argv[i], "--require");
        const char *filter = option(argv[i], "--filter"), *seed = option(argv[i], "--seed");
        uint32_t bits = 0;
        if (isa && fl__isa_parse(isa, &bits) == 0)
            t->isa &= bits;
        else if (require && fl__isa_parse(require, &bits) == 0)
            *required |= bits;
        else if (filter)
            t->filter = filter;
        else if (seed)
            t->seed = strtoull(seed, NULL, 10);
        else
            return false;
    }
    return true;
}

int main(int argc, char **argv)
{
    /* AVX-VNNI and AMX-BF16 are side branches: a machine with AMX may lack the one, and no row
     * here needs the other. */
    const uint32_t optional = FL_ISA_AVXVNNI | FL_ISA_AMXBF16;
    ck t = {.isa = fl__isa_detect(), .seed = 1};
    uint32_t required = 0;
    if (!parse(&t, &required, argc, argv)) {
        printf("usage: check_kernels [--isa=LEVEL] [--require=LEVEL] [--filter=TEXT] "
               "[--seed=N]\n");
        return 2;
    }
    printf("seed %" PRIu64 ", instruction sets up to %s\n", t.seed, fl__isa_name(t.isa));
    check_layout(&t);
    check_gemm(&t);
    check_gemm_f32(&t);
    check_quantize(&t);
    check_transform(&t);
    check_gemm_bf16(&t);
    check_flatten(&t);
    check_attention(&t);
    check_attention_codes(&t);
    check_kv_codec(&t);
    check_rowops(&t);
    if (required & ~optional & ~t.isa) {
        printf("FAILED  --require: this run reaches %s only\n", fl__isa_name(t.isa));
        t.n_failed++;
    }
    printf("%d passed, %d failed, %d skipped\n", t.n_passed, t.n_failed, t.n_skipped);
    return t.n_failed > 0 || t.n_passed == 0;
}
