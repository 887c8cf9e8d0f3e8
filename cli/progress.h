/* progress.h - stderr: a bar on a terminal, plain lines otherwise, and the library's messages.
 *
 * On a terminal the bar is redrawn in place and taken away at the end; messages push it down.
 * Elsewhere (a file, a pipe, TERM=dumb) each report is a line, not more often than asked for.
 * NO_COLOR switches colours off.
 * SPDX-License-Identifier: MIT */
#ifndef FL_CLI_PROGRESS_H
#define FL_CLI_PROGRESS_H

#include <flatiron/flatiron.h>

typedef struct cli_progress {
    bool is_terminal, has_colour;
    bool is_drawn;
    double started_s, shown_s;
    double min_interval_s; /* between plain lines; the last report is always shown */
} cli_progress;

void cli_progress_init(cli_progress *p, double min_interval_s);
/* "<label> done/total  detail  elapsed 0:12  ETA 0:30"; eta_s < 0 or NaN: estimated from
 * done/total. */
void cli_progress_show(cli_progress *p, const char *label, int done, int total,
                       const char *detail, double eta_s);
void cli_progress_clear(cli_progress *p);
/* Sink for the library's messages; p must outlive its use. */
fl_log cli_progress_log(cli_progress *p);
/* "0:12", "1:02:03". */
void cli_duration(char *out, size_t out_bytes, double seconds);
/* Seconds on a clock that never goes back. */
double cli_now_s(void);

#endif
