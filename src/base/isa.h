/* isa.h - instruction sets that kernels may ask for.
 *
 * A bit is set only when cpuid reports the set AND the operating system saves its registers
 * (xgetbv), and for AMX only after arch_prctl(ARCH_REQ_XCOMP_PERM) granted tile data.
 * SPDX-License-Identifier: MIT */
#ifndef FL_BASE_ISA_H
#define FL_BASE_ISA_H

#include <stdint.h>

enum {
    FL_ISA_AVX2 = 1u << 0,       /* AVX2, FMA, F16C */
    FL_ISA_AVXVNNI = 1u << 1,    /* VEX-coded vpdpbusd */
    FL_ISA_AVX512 = 1u << 2,     /* F, BW, DQ, VL */
    FL_ISA_AVX512VNNI = 1u << 3, /* with AVX512 */
    FL_ISA_AMX = 1u << 4,        /* AMX-TILE + AMX-INT8 */
    FL_ISA_AMXBF16 = 1u << 5,    /* AMX-TILE + AMX-BF16 */
};

/* What this machine offers, detected once. */
uint32_t fl__isa_detect(void);
/* Parses "ref", "avx2", "avxvnni", "avx512", "avx512vnni", "amx", "native": the set of all
 * levels up to the named one, not yet ANDed with the machine's. 0 on success, -1 on an unknown
 * name. */
int fl__isa_parse(const char *name, uint32_t *isa);
/* Name of the highest level in isa, such as "amx" or "ref". */
const char *fl__isa_name(uint32_t isa);

#endif
