/* bench.c - fl_bench_kernels_run: shapes, the machine, one JSON document.
 * SPDX-License-Identifier: MIT */
#include "api/bench_gemm.h"
#include "api/bench_race.h"
#include "base/isa.h"
#include "base/json.h"
#include "base/machine.h"
#include "base/mem.h"
#include "kernels/onednn.h"

#include <string.h>
#include <unistd.h>

#define MAX_DIM          (1 << 20)
#define MAX_K            65536
#define BANDWIDTH_BYTES ((size_t)64 << 20)

enum { MIN_BLOCKS = 4, MAX_BLOCKS = 16 }; /* of BANDWIDTH_BYTES */

/* Decode, a small batch and prefill of a square layer; prefill at the layers of Llama 3 8B. */
static const int built_in[][3] = {
    {1, 4096, 4096},   {16, 4096, 4096},   {128, 4096, 4096},  {512, 4096, 4096},
    {512, 1024, 4096}, {512, 14336, 4096}, {512, 4096, 14336},
};

/* So many that the last level of cache would hold half of them. */
static int bandwidth_blocks(void)
{
    const long l3 = sysconf(_SC_LEVEL3_CACHE_SIZE);
    const size_t n = l3 > 0 ? 2 * (size_t)l3 / BANDWIDTH_BYTES + 1 : MAX_BLOCKS;
    return (int)FL_MIN(FL_MAX(n, (size_t)MIN_BLOCKS), (size_t)MAX_BLOCKS);
}

/* Register peak in TOPS and streaming read in GB/s of n_blocks in turn. */
static fl_status yardsticks(double *peak, double *bandwidth, const fl_bench_context *bench,
                            int n_blocks, fl_err *err)
{
    const void *blocks[MAX_BLOCKS];
    const size_t n_bytes = (size_t)n_blocks * BANDWIDTH_BYTES;
    uint8_t *all = fl__alloc_huge(n_bytes, 1);
    if (!all) return fl__fail_nomem(err, "bench", n_bytes);
    memset(all, 1, n_bytes); /* pages that were never written are all the same one */
    for (int i = 0; i < n_blocks; i++) blocks[i] = all + (size_t)i * BANDWIDTH_BYTES;
    fl_bench_peak p = {&bench->ex};
    fl_bench_read r = {&bench->ex, blocks, n_blocks, BANDWIDTH_BYTES, 0};
    fl_bench_contender c[] = {{.run = fl__bench_peak_run, .arg = &p},
                              {.run = fl__bench_read_run, .arg = &r}};
    const fl_status st = fl__bench_race(c, FL_COUNT(c), bench->n_repeats, err);
    *peak = fl__bench_peak_ops(&bench->ex) / c[0].ms * 1e-9;
    *bandwidth = (double)BANDWIDTH_BYTES / c[1].ms * 1e-6;
    fl__free(&all);
    return st;
}

static fl_status machine(json_t **out, const fl_bench_context *bench, fl_err *err)
{
    char cpu[128], onednn[32];
    double peak = 0, bandwidth = 0;
    const int n_blocks = bandwidth_blocks();
    const fl_status st = yardsticks(&peak, &bandwidth, bench, n_blocks, err);
    if (st) return st;
    fl__cpu_name(cpu, sizeof cpu);
    fl__onednn_version(onednn, sizeof onednn);
    *out = json_pack("{s:s, s:s, s:i, s:f, s:s, s:f, s:I, s:s, s:s, s:s, s:i}", "cpu", cpu,
                     "isa", fl__isa_name(bench->ex.isa), "threads", bench->ex.n_threads,
                     "peak_tops", peak, "peak_of", fl__bench_peak_name(&bench->ex),
                     "bandwidth_gb_s", bandwidth, "bandwidth_bytes",
                     (json_int_t)n_blocks * (json_int_t)BANDWIDTH_BYTES, "onednn", onednn,
                     "compiler", __VERSION__, "commit", fl__bench_commit(), "repeats",
                     bench->n_repeats);
    return *out ? FL_OK : fl__fail_nomem(err, "bench report", 0);
}

static bool seen(const int (*shapes)[3], int i)
{
    for (int j = 0; j < i; j++)
        if (shapes[j][0] == shapes[i][0] && shapes[j][2] == shapes[i][2]) return true;
    return false;
}

static fl_status bench_rows(json_t *rows, const fl_bench_context *bench, const int (*shapes)[3],
                            int n_shapes, fl_err *err)
{
    for (int i = 0; i < n_shapes; i++) {
        const int M = shapes[i][0], N = shapes[i][1], K = shapes[i][2];
        fl_status st = fl__bench_gemm(rows, bench, M, N, K, err);
        if (st == FL_OK && !seen(shapes, i)) st = fl__bench_quantize(rows, bench, M, K, err);
        if (st) return st;
    }
    if (json_array_size(rows) == 0)
        return fl__fail(err, FL_E_USAGE,
                        "nothing to measure: filter '%s': no kernel for these shapes and this "
                        "machine has it in its name; use a shorter one",
                        bench->filter ? bench->filter : "");
    return FL_OK;
}

static fl_status check_options(fl_bench_context *bench, const fl_bench_options *o, fl_err *err)
{
    uint32_t isa = 0;
    if (fl__isa_parse(o->isa ? o->isa : "native", &isa) != 0)
        return fl__fail(err, FL_E_USAGE,
                        "unknown instruction set: %s: not one of ref, avx2, avxvnni, avx512, "
                        "avx512vnni, amx, native; use one of them",
                        o->isa);
    if (o->n_repeats < 1 || o->n_threads < 0)
        return fl__fail(err, FL_E_USAGE,
                        "bad bench options: %d repeats, %d threads: must be positive; change "
                        "them",
                        o->n_repeats, o->n_threads);
    for (int i = 0; i < o->n_shapes; i++) {
        const int *s = o->shapes[i];
        if (s[0] < 1 || s[1] < 1 || s[2] < 1 || s[0] > MAX_DIM || s[1] > MAX_DIM ||
            s[2] > MAX_K)
            return fl__fail(
                err, FL_E_USAGE,
                "bad shape: %dx%dx%d: M and N must be 1 to %d, K 1 to %d; change it", s[0],
                s[1], s[2], MAX_DIM, MAX_K);
    }
    *bench = (fl_bench_context){
        .ex = {fl__isa_detect() & isa, o->n_threads ? o->n_threads : fl__default_threads()},
        .n_repeats = o->n_repeats,
        .filter = o->filter,
        .log = &o->log};
    return FL_OK;
}

fl_status fl_bench_kernels_run(char **report_json, const fl_bench_options *options, fl_err *err)
{
    const bool own = options->shapes != NULL;
    fl_bench_context bench;
    json_t *report = NULL, *rows = NULL, *about = NULL;
    fl_status st = FL_OK;

    *report_json = NULL;
    if ((st = check_options(&bench, options, err)) != FL_OK) return st;
    rows = json_array();
    if (!rows) return fl__fail_nomem(err, "bench report", 0);
    if ((st = machine(&about, &bench, err)) != FL_OK) goto out;
    if (!own) st = fl__bench_attention(rows, &bench, err);
    if (!own && st == FL_OK) st = fl__bench_transform(rows, &bench, err);
    if (st) goto out;
    st = bench_rows(rows, &bench, own ? options->shapes : built_in,
                    own ? options->n_shapes : (int)FL_COUNT(built_in), err);
    if (st) goto out;
    report = json_pack("{s:O, s:O}", "machine", about, "rows", rows);
    if (report) *report_json = fl__json_dump(report, 2);
    if (!*report_json) st = fl__fail_nomem(err, "bench report", 0);
out:
    json_decref(report);
    json_decref(about);
    json_decref(rows);
    return st;
}
