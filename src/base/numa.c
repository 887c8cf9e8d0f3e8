/* numa.c - nodes from /sys, placement through mbind: two system calls, for which libnuma would
 * be one more library to have. SPDX-License-Identifier: MIT */
#include "base/numa.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

/* <linux/mempolicy.h> */
#define INTERLEAVE   3
#define MEMS_ALLOWED 4 /* MPOL_F_MEMS_ALLOWED */
#define MAX_NODES    64

uint64_t fl__numa_parse(const char *list)
{
    uint64_t nodes = 0;
    const char *at = list;
    while (*at >= '0' && *at <= '9') {
        char *end;
        const long first = strtol(at, &end, 10);
        const long last = *end == '-' ? strtol(end + 1, &end, 10) : first;
        for (long n = first; n <= last && n < MAX_NODES; n++) nodes |= 1ull << n;
        at = *end == ',' ? end + 1 : end;
    }
    return nodes;
}

static uint64_t online(void)
{
    char list[256] = "";
    FILE *f = fopen("/sys/devices/system/node/online", "r");
    if (!f) return 1;
    if (!fgets(list, sizeof list, f)) list[0] = '\0';
    (void)fclose(f);
    return fl__numa_parse(list);
}

/* Nodes that a cpuset or container leaves to this process. */
static uint64_t allowed(void)
{
    uint64_t mask[16] = {0}; /* the kernel wants room for all that it was built for */
    if (syscall(SYS_get_mempolicy, NULL, mask, 8 * sizeof mask, NULL, MEMS_ALLOWED) != 0)
        return 1;
    return mask[0];
}

static pthread_once_t once = PTHREAD_ONCE_INIT;
static uint64_t nodes;

static void find(void)
{
    nodes = online() & allowed();
    if (nodes == 0) nodes = 1;
}

uint64_t fl__numa_nodes(void)
{
    (void)pthread_once(&once, find);
    return nodes;
}

bool fl__numa_interleave(void *block, size_t n_bytes)
{
    const uint64_t mask = fl__numa_nodes();
    if ((mask & (mask - 1)) == 0) return true;
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    const uintptr_t first = ((uintptr_t)block + page - 1) / page * page;
    const uintptr_t end = ((uintptr_t)block + n_bytes) / page * page;
    if (end <= first) return true;
    return syscall(SYS_mbind, first, end - first, INTERLEAVE, &mask, MAX_NODES + 1UL, 0) == 0;
}
