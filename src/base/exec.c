/* exec.c - parallel loops on OpenMP.
 *
 * Inside a loop the OpenMP thread count is set to one, and restored outside: oneDNN asks OpenMP
 * how many threads it may use and would otherwise choose another blocking (another order of
 * sums) with each thread count. OpenBLAS as Debian builds it has a thread pool of its own that
 * knows nothing of OpenMP, with the same effect on SGEMM and Cholesky, so it is told apart; its
 * setting is one per process, and restoring it would race with another session's loop.
 * SPDX-License-Identifier: MIT */
#include "base/exec.h"

#include <cblas.h>
#include <omp.h>
#include <sched.h>
#include <stdio.h>

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
        const int n = n_items < ex->n_threads ? (int)n_items : ex->n_threads;
#pragma omp parallel for schedule(dynamic, 1) num_threads(n)
        for (int64_t i = 0; i < n_items; i++) fn(arg, i, omp_get_thread_num());
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
