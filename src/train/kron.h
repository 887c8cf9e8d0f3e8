/* kron.h - rows times a Kronecker product of two small square matrices, and the gradients.
 *
 * A row x of n1 * n2 floats, seen as X [n1, n2] row-major, becomes y = P1^T X P2, which is x
 * (P1 (x) P2). With Q = P^-T for both factors the rows of a weight go the other way, so that
 * <x', w'> = <x, w>. A factor that is NULL is the identity.
 *
 * Float32 throughout. Sums run in rising order of the index that is summed over, X P2 first;
 * gradients of the factors are summed over tiles of rows whose number depends on R alone, then
 * over the tiles in order. Each instruction set gives one result for any number of threads.
 * SPDX-License-Identifier: MIT */
#ifndef FL_TRAIN_KRON_H
#define FL_TRAIN_KRON_H

#include "base/exec.h"
#include "base/status.h"

/* Scratch memory, grown at first use of a size, so that a loop over equal steps allocates
 * nothing after its first. For one call at a time. */
typedef struct fl_kron fl_kron;
fl_status fl__kron_new(fl_kron **out, const fl_exec *ex, fl_err *err);
void fl__kron_free(fl_kron **kron);

/* y [R, n1*n2] from x [R, n1*n2], P1 [n1, n1], P2 [n2, n2]; y may be x. */
fl_status fl__kron_rows(fl_kron *kron, float *y, const float *x, int64_t R, int n1, int n2,
                        const float *P1, const float *P2, fl_err *err);

/* What else happens to rows while they are in a cache: called before and after rows first..
 * first + n_rows - 1 of a pass, on the thread that has them, once for each row in all; either
 * may be NULL. Forward, an item is FL_KRON_ITEM rows, the last one's fewer; backward there are
 * at most FL_KRON_TILES items of fl__kron_tile_rows() rows. */
enum { FL_KRON_ITEM = 64, FL_KRON_TILES = 64 };
typedef void fl_kron_hook(void *user, int64_t first, int64_t n_rows, int thread);
typedef struct fl_kron_hooks {
    fl_kron_hook *before, *after;
    void *user;
} fl_kron_hooks;

int64_t fl__kron_tile_rows(int64_t R, int n1, int n2);
fl_status fl__kron_rows_hooked(fl_kron *kron, const fl_kron_hooks *hooks, float *y,
                               const float *x, int64_t R, int n1, int n2, const float *P1,
                               const float *P2, fl_err *err);
fl_status fl__kron_rows_grad_hooked(fl_kron *kron, const fl_kron_hooks *hooks, float *dx,
                                    float *dP1, float *dP2, const float *dy, const float *x,
                                    int64_t R, int n1, int n2, const float *P1,
                                    const float *P2, fl_err *err);

/* dx [R, n1*n2] (may be dy), dP1 [n1, n1], dP2 [n2, n2], each NULL where not wanted, from dy
 * [R, n1*n2] and x as passed forward. The dP of a factor that is NULL is left alone. */
fl_status fl__kron_rows_grad(fl_kron *kron, float *dx, float *dP1, float *dP2, const float *dy,
                             const float *x, int64_t R, int n1, int n2, const float *P1,
                             const float *P2, fl_err *err);

#endif
