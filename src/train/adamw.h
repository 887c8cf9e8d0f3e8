/* adamw.h - AdamW with decoupled weight decay (Loshchilov and Hutter, 2019) and a cosine
 * schedule.
 *
 * Step t = 0, 1, .. of n_steps, g the gradient, lr_t the group's rate:
 *   p <- p (1 - lr_t decay);  m <- b1 m + (1-b1) g;  v <- b2 v + (1-b2) g^2
 *   p <- p - lr_t m / (1 - b1^(t+1)) / (sqrt(v / (1 - b2^(t+1))) + eps)
 *   lr_t = floor + (lr - floor) (1 + cos(pi (t - w) / (n_steps - w))) / 2
 * with lr = rate * multiplier, behind w warm-up steps at lr (t+1) / (w+1). The floor is one
 * absolute rate for all groups.
 * SPDX-License-Identifier: MIT */
#ifndef FL_TRAIN_ADAMW_H
#define FL_TRAIN_ADAMW_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct fl_adamw_group {
    const char *name; /* for messages; static or longer-lived than the optimiser */
    float *p;         /* [n] parameters, borrowed */
    const float *g;   /* [n] gradients, borrowed, written by the caller before each step */
    size_t n;
    double rate_multiplier;
} fl_adamw_group;

typedef struct fl_adamw_options {
    double rate, rate_floor; /* 5e-3, 5e-6 */
    double beta1, beta2;     /* 0.9, 0.999 */
    double eps;              /* 1e-8 */
    double weight_decay;     /* 0.01 */
    int64_t n_steps;         /* of the cosine, warm-up included; later ones run at the floor */
    int64_t n_warmup;        /* 0 */
} fl_adamw_options;
fl_adamw_options fl__adamw_defaults(int64_t n_steps);

typedef struct fl_adamw fl_adamw;
/* Copies the groups' descriptions. Nothing allocates afterwards. */
fl_status fl__adamw_new(fl_adamw **out, const fl_adamw_group *groups, int n_groups,
                        const fl_adamw_options *o, fl_err *err);
void fl__adamw_free(fl_adamw **adamw);

/* One step. FL_E_FAIL, nothing changed, where loss or a gradient is not finite. */
fl_status fl__adamw_step(fl_adamw *adamw, double loss, fl_err *err);
/* Rate of a group with this multiplier at step t. */
double fl__adamw_rate(const fl_adamw_options *o, double multiplier, int64_t t);
int64_t fl__adamw_n_done(const fl_adamw *adamw); /* steps taken */

/* The best parameters so far: remembered as they are now when value is below that of the last
 * time (or there was none), and put back. restore is a no-op while nothing was kept. */
bool fl__adamw_keep_best(fl_adamw *adamw, double value);
void fl__adamw_restore_best(fl_adamw *adamw);

/* All that a run needs to go on, in arrays of the optimiser's number of parameters: those of
 * the groups (copied out, and back in), moments, best parameters. The caller owns the
 * arrays. */
typedef struct fl_adamw_state {
    float *p, *m, *v, *best; /* [n], groups one after the other */
    int64_t n_done;
    double best_value;
    bool has_best;
} fl_adamw_state;
size_t fl__adamw_count(const fl_adamw *adamw); /* n */
void fl__adamw_get(const fl_adamw *adamw, fl_adamw_state *to);
void fl__adamw_set(fl_adamw *adamw, const fl_adamw_state *from);

#endif
