/* rng.c - keyed splitmix64. SPDX-License-Identifier: MIT */
#include "base/rng.h"

#include <math.h>

static uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

fl_rng fl__rng_init(uint64_t seed, int block, const char *purpose)
{
    uint64_t h = 0xcbf29ce484222325u; /* FNV-1a over the purpose */
    for (const char *c = purpose; *c; c++) h = (h ^ (unsigned char)*c) * 0x100000001b3u;
    return (fl_rng){mix(mix(mix(seed + 0x9e3779b97f4a7c15u) ^ (uint64_t)(int64_t)block) ^ h)};
}

uint64_t fl__rng_u64(fl_rng *r)
{
    return mix(r->state += 0x9e3779b97f4a7c15u);
}

uint64_t fl__rng_below(fl_rng *r, uint64_t n)
{
    const uint64_t limit = UINT64_MAX - UINT64_MAX % n; /* rejects the biased tail */
    uint64_t x;
    do x = fl__rng_u64(r);
    while (x >= limit);
    return x % n;
}

double fl__rng_unit(fl_rng *r)
{
    return (double)(fl__rng_u64(r) >> 11) * 0x1p-53;
}

double fl__rng_normal(fl_rng *r)
{
    const double u = 1.0 - fl__rng_unit(r), v = fl__rng_unit(r);
    return sqrt(-2.0 * log(u)) * cos(6.283185307179586476925 * v);
}
