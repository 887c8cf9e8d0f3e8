/* machine.c - fields of /proc/cpuinfo and /proc/meminfo. SPDX-License-Identifier: MIT */
#include "base/machine.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* The text behind `key` and its colon in a "key : value" file of /proc; "" when absent. */
static void read_field(char *out, size_t out_bytes, const char *path, const char *key)
{
    char line[512];
    out[0] = '\0';
    FILE *f = fopen(path, "r");
    if (!f) return;
    while (!out[0] && fgets(line, sizeof line, f)) {
        const char *value = strchr(line, ':');
        if (strncmp(line, key, strlen(key)) != 0 || !value) continue;
        value += 1 + strspn(value + 1, " \t");
        (void)snprintf(out, out_bytes, "%.*s", (int)strcspn(value, "\n"), value);
    }
    (void)fclose(f);
}

void fl__cpu_name(char *name, size_t name_bytes)
{
    read_field(name, name_bytes, "/proc/cpuinfo", "model name");
    if (!name[0]) (void)snprintf(name, name_bytes, "unknown");
}

int64_t fl__memory_bytes(void)
{
    return (int64_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE);
}

int64_t fl__memory_available_bytes(void)
{
    char text[64];
    long long kib;
    read_field(text, sizeof text, "/proc/meminfo", "MemAvailable");
    return sscanf(text, "%lld", &kib) == 1 ? (int64_t)kib * 1024 : 0;
}
