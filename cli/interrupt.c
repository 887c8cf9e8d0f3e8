/* interrupt.c - one flag, the only mutable global of the program: a handler may touch no more.
 * SPDX-License-Identifier: MIT */
#include "interrupt.h"

#include <signal.h>
#include <string.h>

static volatile sig_atomic_t seen;

static void on_signal(int number)
{
    seen = number;
}

void cli_interrupt_install(void)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    action.sa_flags = (int)SA_RESETHAND | SA_RESTART; /* the second signal kills */
    (void)sigaction(SIGINT, &action, NULL);
    (void)sigaction(SIGTERM, &action, NULL);
}

int cli_interrupt_signal(void)
{
    return (int)seen;
}

bool cli_should_stop(void *user)
{
    (void)user;
    return seen != 0;
}
