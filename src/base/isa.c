/* isa.c - detection of instruction sets, once per process.
 *
 * cpuid says what the processor has, xgetbv what the operating system saves on a context
 * switch. AMX tile data is off until the process asks Linux for it (arch_prctl), which can be
 * refused.
 * SPDX-License-Identifier: MIT */
#include "base/isa.h"
#include "base/status.h"

#include <cpuid.h>
#include <pthread.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ARCH_REQ_XCOMP_PERM 0x1023
#define XFEATURE_XTILEDATA  18

/* Register state bits of XCR0. */
#define XCR0_AVX    0x6u
#define XCR0_AVX512 0xe0u
#define XCR0_TILES  0x60000u

static bool bit(uint32_t word, int i)
{
    return (word >> i & 1) != 0;
}

static uint32_t xcr0(void)
{
    uint32_t lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return lo;
}

static uint32_t detect(void)
{
    uint32_t a, b, c, d, isa = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
    const bool fma_f16c = bit(c, 12) && bit(c, 29);
    if (!bit(c, 27) || !bit(c, 28)) return 0; /* OSXSAVE, AVX */
    const uint32_t saved = xcr0();
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;

    if ((saved & XCR0_AVX) != XCR0_AVX || !bit(b, 5) || !fma_f16c) return 0;
    isa |= FL_ISA_AVX2;
    if ((saved & XCR0_AVX512) == XCR0_AVX512 && bit(b, 16) && bit(b, 17) && bit(b, 30) &&
        bit(b, 31)) {
        isa |= FL_ISA_AVX512;
        if (bit(c, 11)) isa |= FL_ISA_AVX512VNNI;
    }
    if ((isa & FL_ISA_AVX512VNNI) && (saved & XCR0_TILES) == XCR0_TILES && bit(d, 24) &&
        syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0) {
        if (bit(d, 25)) isa |= FL_ISA_AMX;
        if (bit(d, 22)) isa |= FL_ISA_AMXBF16;
    }
    if (__get_cpuid_count(7, 1, &a, &b, &c, &d) && bit(a, 4)) isa |= FL_ISA_AVXVNNI;
    return isa;
}

static pthread_once_t once = PTHREAD_ONCE_INIT;
static uint32_t machine_isa;

static void detect_once(void)
{
    machine_isa = detect();
}

uint32_t fl__isa_detect(void)
{
    (void)pthread_once(&once, detect_once);
    return machine_isa;
}

/* Lowest first; the set of a level is the union of its own and all lower ones. */
static const struct {
    const char *name;
    uint32_t bits;
} levels[] = {
    {"ref", 0},
    {"avx2", FL_ISA_AVX2},
    {"avxvnni", FL_ISA_AVXVNNI},
    {"avx512", FL_ISA_AVX512},
    {"avx512vnni", FL_ISA_AVX512VNNI},
    {"amx", FL_ISA_AMX | FL_ISA_AMXBF16},
};

int fl__isa_parse(const char *name, uint32_t *isa)
{
    uint32_t bits = 0;
    if (strcmp(name, "native") == 0) {
        *isa = UINT32_MAX;
        return 0;
    }
    for (size_t i = 0; i < FL_COUNT(levels); i++) {
        bits |= levels[i].bits;
        if (strcmp(name, levels[i].name) == 0) {
            *isa = bits;
            return 0;
        }
    }
    return -1;
}

const char *fl__isa_name(uint32_t isa)
{
    size_t i = FL_COUNT(levels) - 1;
    while (i > 0 && (isa & levels[i].bits) == 0) i--;
    return levels[i].name;
}
