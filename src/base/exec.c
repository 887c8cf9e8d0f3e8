/* exec.c - parallel loops on OpenMP.
 *
 * Inside a loop the OpenMP thread count is set to one, and restored outside: oneDNN asks OpenMP
 * how many threads it may use and would otherwise choose another blocking (another order of
 * sums) with each thread count. OpenBLAS as Debian builds it has a thread pool of its own that
 * knows nothing of OpenMP, with the same effect on SGEMM and Cholesky, so it is told apart; its
 * setting is one per process, and restoring it would race with another session's loop.
 *
 * A thread takes its own share of the items from front to back, so that it streams through
 * memory (weights of a decode step) and meets the same items in every loop of one shape, whose
 * data then lie in its caches. OpenMP has no such schedule that also helps out a thread that
 * lost its core: static does not, dynamic deals neighbours to different threads.
 * SPDX-License-Identifier: MIT */
#include "base/exec.h"

#include <cblas.h>
#include <omp.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>

enum { CACHE_LINE = 64, MAX_SHARES = 64 };

/* Items [next, end) that are still to be taken. */
typedef struct share {
    _Alignas(CACHE_LINE) atomic_llong next;
    int64_t end;
} share;

/* Own share first, then what is left of the others'. */
static void run_shares(share *shares, int n_shares, fl__item_fn *fn, void *arg, int thread)
{
    for (int k = 0; k < n_shares; k++) {
        share *s = &shares[(thread + k) % n_shares];
        int64_t i;
        while ((i = atomic_fetch_add_explicit(&s->next, 1, memory_order_relaxed)) < s->end)
            fn(arg, i, thread);
    }
}

/* All n threads, also for fewer items: OpenMP ends threads that a region has no use for, and
 * the next one starts them anew, which takes longer and allocates. */
static void run_threads(int n, int64_t n_items, fl__item_fn *fn, void *arg)
{
    share shares[MAX_SHARES];
    const int n_shares = n < MAX_SHARES ? n : MAX_SHARES;
    for (int k = 0; k < n_shares; k++) {
        atomic_init(&shares[k].next, n_items * k / n_shares);
        shares[k].end = n_items * (k + 1) / n_shares;
    }
#pragma omp parallel num_threads(n)
    run_shares(shares, n_shares, fn, arg, omp_get_thread_num());
}

void fl__parallel_for(const fl_exec *ex, int64_t n_items, fl__item_fn *fn, void *arg)
{
    if (omp_in_parallel()) { /* all is set; setting it again would serialise the threads */
        for (int64_t i = 0; i < n_items; i++) fn(arg, i, 0);
        return;
    }
    const int saved = omp_get_max_threads();
    omp_set_num_threads(1);
    openblas_set_num_threads(1);
    if (n_items <= 1 || ex->n_threads <= 1) {
        for (int64_t i = 0; i < n_items; i++) fn(arg, i, 0);
    } else {
        run_threads(ex->n_threads, n_items, fn, arg);
    }
    omp_set_num_threads(saved);
}

/* First CPU of the list of hardware threads that share cpu's core; cpu itself where unknown. */
static int core_leader(int cpu)
{
    char path[96];
    int leader = cpu;
    (void)snprintf(path, sizeof path,
                   "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
    FILE *f = fopen(path, "r");
    if (f) {
        if (fscanf(f, "%d", &leader) != 1) leader = cpu;
        (void)fclose(f);
    }
    return leader;
}

int fl__default_threads(void)
{
    cpu_set_t set, leaders;
    const int asked = omp_get_max_threads();
    if (asked != omp_get_num_procs()) return asked > 0 ? asked : 1;
    CPU_ZERO(&leaders);
    if (sched_getaffinity(0, sizeof set, &set) != 0) return asked; /* CPUs beyond CPU_SETSIZE */
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &set)) continue;
        const int leader = core_leader(cpu);
        CPU_SET(leader >= 0 && leader < CPU_SETSIZE ? leader : cpu, &leaders);
    }
    const int n = CPU_COUNT(&leaders);
    return n > 0 ? n : 1;
}

int fl__library_threads_set(int n_threads)
{
    const int before = omp_get_max_threads();
    omp_set_num_threads(n_threads);
    return before;
}
