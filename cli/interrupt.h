/* interrupt.h - SIGINT and SIGTERM ask the running job to stop at its next safe point; a second
 * one kills.
 * SPDX-License-Identifier: MIT */
#ifndef FL_CLI_INTERRUPT_H
#define FL_CLI_INTERRUPT_H

#include <stdbool.h>

void cli_interrupt_install(void);
/* SIGINT or SIGTERM once it has come, else 0. */
int cli_interrupt_signal(void);
/* As a should_stop callback. */
bool cli_should_stop(void *user);

#endif
