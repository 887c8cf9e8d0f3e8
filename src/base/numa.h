/* numa.h - memory of machines with several nodes. SPDX-License-Identifier: MIT */
#ifndef FL_BASE_NUMA_H
#define FL_BASE_NUMA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Nodes that this process may have memory from, one bit each; 1 where Linux tells of no more
 * than one. */
uint64_t fl__numa_nodes(void);

/* Deals the pages of a block that was not written yet to all nodes in turn: what all threads
 * read, wherever they run, then comes from all memory controllers at once. Changes nothing on
 * one node. False where Linux refused. */
bool fl__numa_interleave(void *block, size_t n_bytes);

/* A list as in /sys/devices/system/node/online, "0-1,4": its bits up to 63; 0 for no list. */
uint64_t fl__numa_parse(const char *list);

#endif
