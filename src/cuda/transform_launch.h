/* transform_launch.h - which of the wide transforms' kernels takes a problem.
 *
 * Up to a row per multiprocessor: transform_single.h, or for long rows, a few of them,
 * transform_split.h. Beyond, bare dense rows go to transform_wide.h and rows that have to be
 * made to transform_made.h. SPDX-License-Identifier: MIT */
#ifndef FL_CUDA_TRANSFORM_LAUNCH_H
#define FL_CUDA_TRANSFORM_LAUNCH_H

#include "cuda/transform_made.h"
#include "cuda/transform_single.h"
#include "cuda/transform_split.h"

/* Of one shape. wide_*: bare rows; held and the rest: made ones. */
template <int wide_teams_, int wide_stages_, int held_, int teams_, int slots_, int stages_,
          int turn_regs_, int make_regs_, int split_rows_>
struct wide_plan {
    static constexpr int wide_teams = wide_teams_, wide_stages = wide_stages_, held = held_;
    static constexpr int teams = teams_, slots = slots_, stages = stages_;
    static constexpr int turn_regs = turn_regs_, make_regs = make_regs_;
    static constexpr int split_rows = split_rows_; /* up to so many rows */
};

template <int N1, int N2, class P, int F>
static cudaError_t launch_front(const wide_args *a, int n_sm, cudaStream_t stream)
{
    if (a->t.M <= n_sm) return launch_single<N1, N2, F>(a, stream);
    return launch_made<N1, N2, P::held, F, P::teams, P::slots, P::stages, P::turn_regs,
                       P::make_regs>(a, n_sm, stream);
}

template <int N1, int N2, class P>
static fl_status launch_wide(const transform_args *p, int n_sm, cudaStream_t stream,
                             fl_err *err)
{
    const int front = fl__cuda_row_front(&p->x);
    wide_args a = {};
    cudaError_t e;
    fl_status st;
    a.t = *p;
    a.grid = make_code_grid(&p->grid);
    if (p->M <= P::split_rows) e = launch_split<N1, N2>(p, stream);
    else if (front == FRONT_BARE && p->x.ldx == N1 * N2 && p->M > n_sm) {
        if ((st = make_map<N1, N2>(&a, err)) != FL_OK) return st;
        e = launch_wide_front<N1, N2, FRONT_BARE, P::wide_teams, P::wide_stages>(&a, n_sm, stream);
    } else if (front == FRONT_F32) e = launch_front<N1, N2, P, FRONT_F32>(&a, n_sm, stream);
    else if (front == FRONT_SILU) e = launch_front<N1, N2, P, FRONT_SILU>(&a, n_sm, stream);
    else e = launch_front<N1, N2, P, FRONT_BF16>(&a, n_sm, stream);
    if (e == cudaSuccess) return FL_OK;
    return fl__fail(err, FL_E_FAIL, "cuda: transform [%d, %d x %d]: %s; see the GPU's log",
                    p->M, N1, N2, cudaGetErrorString(e));
}

#endif
