/* clock.h - time for measurements. SPDX-License-Identifier: MIT */
#ifndef FL_BASE_CLOCK_H
#define FL_BASE_CLOCK_H

/* Seconds on a clock that never goes back; only differences mean something. */
double fl__now_s(void);

#endif
