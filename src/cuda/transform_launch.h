/* transform_launch.h - which of the wide transforms' kernels takes a problem.
 *
 * Up to a row per multiprocessor: transform_single.h, or for few long rows transform_split.h;
 * beyond: transform_wide.h. SPDX-License-Identifier: MIT */
#ifndef FL_CUDA_TRANSFORM_LAUNCH_H
#define FL_CUDA_TRANSFORM_LAUNCH_H

#include "cuda/transform_single.h"
#include "cuda/transform_split.h"
#include "cuda/transform_wide.h"

/* Of one shape: teams of a CTA and stages of a team for bare rows and for made ones (0 teams: a
 * CTA for each row); up to so many rows are split. */
template <int bare_teams_, int bare_stages_, int made_teams_, int made_stages_, int split_rows_>
struct wide_plan {
    static constexpr int bare_teams = bare_teams_, bare_stages = bare_stages_;
    static constexpr int made_teams = made_teams_, made_stages = made_stages_;
    static constexpr int split_rows = split_rows_;
};

template <int N1, int N2, class P, int F>
static cudaError_t launch_front(const wide_args *a, int n_sm, cudaStream_t stream)
{
    if (P::made_teams == 0 || a->t.M <= n_sm) return launch_single<N1, N2, F>(a, stream);
    if constexpr (P::made_teams > 0)
        return launch_many<N1, N2, F, P::made_teams, P::made_stages>(a, n_sm, stream);
}

static inline fl_status launched(cudaError_t e, const transform_args *p, fl_err *err)
{
    if (e == cudaSuccess) return FL_OK;
    return fl__fail(err, FL_E_FAIL, "cuda: transform [%d, %d x %d]: %s; see the GPU's log",
                    p->M, p->n1, p->n2, cudaGetErrorString(e));
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
    if constexpr (P::split_rows > 0)
        if (p->M <= P::split_rows) return launched(launch_split<N1, N2>(p, stream), p, err);
    if (front == FRONT_BARE && p->x.ldx == N1 * N2 && p->M > n_sm) {
        if ((st = make_map<N1, N2>(&a, err)) != FL_OK) return st;
        e = launch_many<N1, N2, FRONT_BARE, P::bare_teams, P::bare_stages>(&a, n_sm, stream);
    } else if (front == FRONT_F32) e = launch_front<N1, N2, P, FRONT_F32>(&a, n_sm, stream);
    else if (front == FRONT_SILU) e = launch_front<N1, N2, P, FRONT_SILU>(&a, n_sm, stream);
    else e = launch_front<N1, N2, P, FRONT_BF16>(&a, n_sm, stream);
    return launched(e, p, err);
}

#endif
