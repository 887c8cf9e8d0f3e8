/* exec_options.c - resolving isa and n_threads. SPDX-License-Identifier: MIT */
#include "api/exec_options.h"

#include "base/isa.h"
#include "base/log.h"
#include "base/numa.h"

#include <string.h>

enum { MAX_THREADS = 1024 };

fl_status fl__exec_resolve(fl_exec *ex, const char *isa, int n_threads, const fl_log *log,
                           fl_err *err)
{
    uint32_t wanted;
    const char *level = isa ? isa : "native";
    if (fl__isa_parse(level, &wanted) != 0)
        return fl__fail(
            err, FL_E_USAGE,
            "bad option: isa: '%s' is no known instruction set; use native, ref, avx2, "
            "avxvnni, avx512, avx512vnni or amx",
            level);
    if (n_threads < 0 || n_threads > MAX_THREADS)
        return fl__fail(err, FL_E_USAGE,
                        "bad option: threads: %d is out of range; use 0 (one per core) to %d",
                        n_threads, MAX_THREADS);
    *ex = (fl_exec){.isa = wanted & fl__isa_detect(),
                    .n_threads = n_threads > 0 ? n_threads : fl__default_threads()};
    const char *used = fl__isa_name(ex->isa);
    if (strcmp(level, "native") != 0 && strcmp(level, used) != 0)
        fl__log(log, FL_LOG_WARN, "this machine does not have %s: using %s", level, used);
    const int n_nodes = __builtin_popcountll(fl__numa_nodes());
    if (n_nodes > 1)
        fl__log(log, FL_LOG_INFO,
                "%d memory nodes: pages of packed weights lie on them in turn", n_nodes);
    return FL_OK;
}
