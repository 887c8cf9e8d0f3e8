/* run_program.c - fork, exec, output into files of the test's directory.
 * SPDX-License-Identifier: MIT */
#include "support/run_program.h"

#include "support/fl_test.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MAX_WORDS = 64, MAX_TEXT = 4096 };

extern char **environ;

/* Cuts text at single spaces; words points into text. */
static int split(char *text, char *words[MAX_WORDS])
{
    int n = 0;
    for (char *at = text; *at && n < MAX_WORDS - 1;) {
        words[n++] = at;
        at += strcspn(at, " ");
        if (*at) *at++ = '\0';
    }
    words[n] = NULL;
    return n;
}

static void drop_own_settings(void)
{
    char name[256];
    for (char **e = environ; *e;) {
        const size_t n = strcspn(*e, "=");
        if (strncmp(*e, "FLATIRON_", 9) != 0 || n >= sizeof name) {
            e++;
            continue;
        }
        memcpy(name, *e, n);
        name[n] = '\0';
        (void)unsetenv(name); /* moves the rest up */
    }
}

static void redirect(int fd, const char *name)
{
    const int file = open(fl_test_path(name), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (file < 0 || dup2(file, fd) < 0) _exit(126);
}

static void run_child(const char *args, const char *env)
{
    static char text[MAX_TEXT], env_text[MAX_TEXT];
    char *words[MAX_WORDS], *settings[MAX_WORDS], program[] = FL_BINARY_DIR "/flatiron";
    (void)snprintf(text, sizeof text, "flatiron %s", args);
    (void)split(text, words);
    for (char **word = words; *word; word++)
        for (char *c = *word; *c; c++)
            if (*c == '~') *c = ' ';
    drop_own_settings();
    (void)snprintf(env_text, sizeof env_text, "%s", env ? env : "");
    for (int i = 0, n = split(env_text, settings); i < n; i++) (void)putenv(settings[i]);
    redirect(STDOUT_FILENO, "stdout");
    redirect(STDERR_FILENO, "stderr");
    if (chdir(fl_test_dir()) != 0) _exit(126);
    (void)execv(program, words);
    _exit(127);
}

static size_t read_file(char *out, size_t out_bytes, const char *name)
{
    FILE *f = fopen(fl_test_path(name), "rb");
    if (!f) fail_msg("%s is missing", name);
    const size_t n = fread(out, 1, out_bytes - 1, f);
    out[n] = '\0';
    (void)fclose(f);
    return n;
}

void fl_test_run_program(fl_test_run_result *r, const char *args, const char *env)
{
    int status;
    (void)fl_test_dir();
    (void)fflush(NULL);
    const pid_t child = fork();
    if (child < 0) fail_msg("fork failed");
    if (child == 0) run_child(args, env);
    if (waitpid(child, &status, 0) != child) fail_msg("waitpid failed");
    r->exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    r->n_out_bytes = read_file(r->out, sizeof r->out, "stdout");
    r->n_err_bytes = read_file(r->err, sizeof r->err, "stderr");
}
