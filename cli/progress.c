/* progress.c - drawing on stderr. SPDX-License-Identifier: MIT */
#include "progress.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { BAR_CELLS = 24 };
static const double REDRAW_S = 0.1;

double cli_now_s(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void cli_duration(char *out, size_t out_bytes, double seconds)
{
    const long s = seconds > 0 ? (long)(seconds + 0.5) : 0;
    if (s >= 3600)
        (void)snprintf(out, out_bytes, "%ld:%02ld:%02ld", s / 3600, s / 60 % 60, s % 60);
    else (void)snprintf(out, out_bytes, "%ld:%02ld", s / 60, s % 60);
}

static bool is_set(const char *name)
{
    const char *value = getenv(name);
    return value && *value;
}

void cli_progress_init(cli_progress *p, double min_interval_s)
{
    const char *term = getenv("TERM");
    *p = (cli_progress){.min_interval_s = min_interval_s, .started_s = cli_now_s()};
    p->is_terminal = isatty(STDERR_FILENO) && term && strcmp(term, "dumb") != 0;
    p->has_colour = p->is_terminal && !is_set("NO_COLOR");
    p->shown_s = p->started_s - REDRAW_S - min_interval_s;
}

void cli_progress_clear(cli_progress *p)
{
    if (p->is_drawn) (void)fprintf(stderr, "\r\033[K");
    p->is_drawn = false;
}

static void draw_bar(const cli_progress *p, int done, int total)
{
    char bar[BAR_CELLS + 1];
    const int full = total > 0 ? (int)((long long)done * BAR_CELLS / total) : 0;
    for (int i = 0; i < BAR_CELLS; i++) bar[i] = i < full ? '#' : '.';
    bar[BAR_CELLS] = '\0';
    (void)fprintf(stderr, "\r\033[K%s[%s]%s ", p->has_colour ? "\033[36m" : "", bar,
                  p->has_colour ? "\033[0m" : "");
}

void cli_progress_show(cli_progress *p, const char *label, int done, int total,
                       const char *detail, double eta_s)
{
    char elapsed_text[24], eta_text[24];
    const double now = cli_now_s(), elapsed = now - p->started_s;
    const double interval = p->is_terminal ? REDRAW_S : p->min_interval_s;
    if (done < total && now - p->shown_s < interval) return;
    p->shown_s = now;
    if (!(eta_s >= 0)) eta_s = done > 0 ? elapsed * (total - done) / done : 0;
    cli_duration(elapsed_text, sizeof elapsed_text, elapsed);
    cli_duration(eta_text, sizeof eta_text, eta_s);
    if (p->is_terminal) draw_bar(p, done, total);
    (void)fprintf(stderr, "%s %d/%d%s%s  elapsed %s  ETA %s%s", label, done, total,
                  *detail ? "  " : "", detail, elapsed_text, eta_text,
                  p->is_terminal ? "" : "\n");
    (void)fflush(stderr);
    p->is_drawn = p->is_terminal;
}

static void write_line(void *user, fl_log_level level, const char *line)
{
    cli_progress *p = user;
    cli_progress_clear(p);
    if (level == FL_LOG_WARN)
        (void)fprintf(stderr, "%swarning:%s %s\n", p->has_colour ? "\033[33m" : "",
                      p->has_colour ? "\033[0m" : "", line);
    else (void)fprintf(stderr, "%s\n", line);
}

fl_log cli_progress_log(cli_progress *p)
{
    return (fl_log){.write = write_line, .user = p};
}
