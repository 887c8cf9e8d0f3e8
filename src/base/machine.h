/* machine.h - what the machine says about itself. SPDX-License-Identifier: MIT */
#ifndef FL_BASE_MACHINE_H
#define FL_BASE_MACHINE_H

#include <stddef.h>
#include <stdint.h>

/* The processor's name as Linux reports it; "unknown" when it does not. */
void fl__cpu_name(char *name, size_t name_bytes);
int64_t fl__memory_bytes(void);
/* What could be allocated without swapping; 0: not known. */
int64_t fl__memory_available_bytes(void);

#endif
