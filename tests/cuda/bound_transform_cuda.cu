/* bound_transform_cuda.cu - see transform_bound.h; and the tensor core's own Y, to look at.
 * SPDX-License-Identifier: MIT */
#include "check_transform_cuda.h"

#include "cuda/sm90.h"
#include "transform_bound.h"

#include <float.h>
#include <math.h>

static const double UNIT = 1.0 / (1 << 23);

static double bf16_near(double v)
{
    return bf16_to(bf16_of((float)v)); /* to float32 first: the caller's bound covers that */
}

/* *open: how far from the value another rounding within e of v lies. */
static double round_open(double *open, double v, double e)
{
    const double y = bf16_near(v);
    e += fabs(v) * UNIT / 2 + 1e-40;
    *open = fmax(fabs(bf16_near(v + e) - y), fabs(bf16_near(v - e) - y));
    return y;
}

void transform_bound_init(transform_bound *b, int n1, int n2, const float *left,
                          const float *right)
{
    const size_t n = (size_t)n1 * n2;
    double *all = (double *)malloc(6 * n * sizeof *all);
    *b = {n1,          n2,          left,        right, all, all + n, all + 2 * n,
          all + 3 * n, all + 4 * n, all + 5 * n, 0,     0,   0,       0};
}

void transform_bound_fini(transform_bound *b)
{
    free(b->u);
}

/* sum_k a[k] w[k * stride] with w exact: its value; *e gets the bound, of a's open values and
 * of steps of 16 on a tensor core. */
static double bound_sum(double *e, const double *a, int64_t step_a, const double *open,
                        const float *w, int64_t step_w, int K)
{
    double sum = 0, noise = 0;
    for (int k = 0; k < K;) {
        double largest = fabs(sum);
        for (const int end = FL_MIN(K, k + 16); k < end; k++) {
            const double product = a[k * step_a] * w[k * step_w];
            sum += product;
            noise += open[k * step_a] * fabs(w[k * step_w]);
            largest = fmax(largest, fabs(product));
        }
        noise += 17 * UNIT * fmax(largest, fabs(sum));
    }
    *e = noise;
    return sum;
}

void transform_bound_row(transform_bound *b, const double *v, const double *e)
{
    const int n1 = b->n1, n2 = b->n2;
    for (int c = 0; c < n1 * n2; c++) b->u[c] = round_open(&b->open_u[c], v[c], e[c]);
    for (int i = 0; i < n1; i++)
        for (int j = 0; j < n2; j++) {
            double noise;
            const double y =
                bound_sum(&noise, b->u + i * n2, 1, b->open_u + i * n2, b->right + j, n2, n2);
            b->y[i * n2 + j] = round_open(&b->open_y[i * n2 + j], y, noise);
        }
    b->top = b->open_top = b->bottom = b->open_bottom = 0;
    double top_lo = 0, top_hi = 0, bottom_lo = 0, bottom_hi = 0;
    for (int a = 0; a < n1; a++)
        for (int j = 0; j < n2; j++) {
            double noise;
            const double x =
                bound_sum(&noise, b->y + j, n2, b->open_y + j, b->left + a, n1, n1);
            b->x[a * n2 + j] = x;
            b->e[a * n2 + j] = noise;
            top_lo = fmax(top_lo, x - noise), top_hi = fmax(top_hi, x + noise);
            bottom_lo = fmax(bottom_lo, -x - noise), bottom_hi = fmax(bottom_hi, noise - x);
        }
    b->top = (top_lo + top_hi) / 2, b->open_top = (top_hi - top_lo) / 2;
    b->bottom = (bottom_lo + bottom_hi) / 2, b->open_bottom = (bottom_hi - bottom_lo) / 2;
}

/* The scale for extremes that are `side` of their bounds off: -1 the least, 1 the most. */
static double scale_at(const transform_bound *b, const fl_cuda_grid *grid, int side)
{
    const int q_top = (1 << grid->bits) - 1, q_max = q_top / 2;
    const double top = (b->top + side * b->open_top) * grid->clip_max;
    const double bottom = (b->bottom + side * b->open_bottom) * grid->clip_min;
    return grid->asymmetric ? (top + bottom) / q_top : fmax(top, bottom) / q_max;
}

bool transform_bound_scale(const transform_bound *b, const fl_cuda_grid *grid, float scale,
                           int zero)
{
    const double few = 4 * UNIT; /* roundings of the scale itself */
    const double lo = scale_at(b, grid, -1) * (1 - few), hi = scale_at(b, grid, 1) * (1 + few);
    const int q_top = (1 << grid->bits) - 1;
    if (hi < FLT_MIN) return scale == 1.0f;
    if (!(scale >= lo && scale <= hi)) return false;
    if (!grid->asymmetric) return zero == 0;
    const double z_lo = (b->bottom - b->open_bottom) * grid->clip_min / scale * (1 - few),
                 z_hi = (b->bottom + b->open_bottom) * grid->clip_min / scale * (1 + few);
    const int z = zero + (grid->bits == 8 ? 128 : 0);
    return z >= fmin(fmax(rint(z_lo), 0), q_top) && z <= fmin(fmax(rint(z_hi), 0), q_top);
}

void transform_bound_code(int *lo, int *hi, const transform_bound *b, const fl_cuda_grid *grid,
                          float scale, int zero, int c)
{
    const int q_top = (1 << grid->bits) - 1, q_max = q_top / 2;
    const int z = zero + (grid->asymmetric && grid->bits == 8 ? 128 : 0);
    const double least = grid->asymmetric ? -z : -q_max - 1;
    const double most = grid->asymmetric ? q_top - z : q_max;
    /* three roundings of t, and those of a value scaled to 0..1 over all codes */
    const double t = b->x[c] / scale,
                 e = b->e[c] / scale + fabs(t) * 3 * UNIT + q_top * 2 * UNIT;
    *lo = (int)fmin(fmax(rint(t - e), least), most) + zero;
    *hi = (int)fmin(fmax(rint(t + e), least), most) + zero;
}

/* ---- the tensor core's products ---------------------------------------------------------- */

/* y [n1, n2] = u right by mma m16n8k16, one warp per 16 x 8. */
__global__ void probe_products(float *y, const uint16_t *u, const uint16_t *right, int n1,
                               int n2)
{
    const int i0 = blockIdx.x * 16, j0 = blockIdx.y * 8, r = threadIdx.x / 4,
              q = threadIdx.x % 4;
    float d[4] = {};
    for (int k0 = 0; k0 < n2; k0 += 16) {
        uint32_t a[4], b[2];
        for (int w = 0; w < 4; w++) {
            a[w] = 0;
            for (int h = 0; h < 2; h++) {
                const int i = i0 + r + w % 2 * 8, k = k0 + 2 * q + w / 2 * 8 + h;
                if (i < n1 && k < n2) a[w] |= (uint32_t)u[i * n2 + k] << 16 * h;
            }
        }
        for (int w = 0; w < 2; w++) {
            b[w] = 0;
            for (int h = 0; h < 2; h++) {
                const int j = j0 + r, k = k0 + 2 * q + w * 8 + h;
                if (j < n2 && k < n2) b[w] |= (uint32_t)right[k * n2 + j] << 16 * h;
            }
        }
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
                     "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
    for (int w = 0; w < 4; w++) {
        const int i = i0 + r + w / 2 * 8, j = j0 + 2 * q + w % 2;
        if (i < n1 && j < n2) y[i * n2 + j] = d[w];
    }
}

/* bf16 products of one row on tensor cores. */
static void device_products(float *y, const uint16_t *u, const transform_bound *b)
{
    const size_t n = (size_t)b->n1 * b->n2;
    uint16_t *right = to_bf16(b->right, (size_t)b->n2 * b->n2);
    uint16_t *d_u = (uint16_t *)gpu_copy(u, 2 * n);
    uint16_t *d_right = (uint16_t *)gpu_copy(right, 2 * (size_t)b->n2 * b->n2);
    float *d_y = (float *)gpu_alloc(4 * n);
    probe_products<<<dim3((b->n1 + 15) / 16, (b->n2 + 7) / 8), 32>>>(d_y, d_u, d_right, b->n1,
                                                                     b->n2);
    CUDA_OK(cudaMemcpy(y, d_y, 4 * n, cudaMemcpyDeviceToHost));
    CUDA_OK(cudaFree(d_u));
    CUDA_OK(cudaFree(d_right));
    CUDA_OK(cudaFree(d_y));
    free(right);
}

/* The front's float32 row, as fl__cuda_row_values gives it. */
static void device_row(float *w, const fl_cuda_row *row, int n, int m)
{
    fl_cuda_row one = *row;
    fl_cuda_matrix y = {gpu_alloc(4 * n), n, true};
    one.x = (const char *)row->x + (row->x_f32 ? 4 : 2) * m * row->ldx;
    if (row->up) one.up = row->up + m * row->ldx;
    one.add = NULL; /* done */
    FL_OK_OR_EXIT(fl__cuda_row_values(&y, &one, 1, n, 0, &err));
    CUDA_OK(cudaMemcpy(w, y.data, 4 * n, cudaMemcpyDeviceToHost));
    CUDA_OK(cudaFree(y.data));
}

/* A value that the GPU rounds to another bf16 number than the exact one. */
static void print_border(const char *what, int i, int j, double exact, float gpu, double moves)
{
    const double near = bf16_near(exact), other = bf16_near(gpu);
    if (near == other) return;
    printf(
        "     %s[%d, %d]: exact %.9g > %.8g, GPU %.9g > %.8g, border %.9g: moves X' by %.2g\n",
        what, i, j, exact, near, gpu, other, (near + other) / 2, moves * (other - near));
}

void explain_scale(const transform_bound *b, const fl_cuda_row *row, const double *v, int m)
{
    const int n1 = b->n1, n2 = b->n2, n = n1 * n2;
    float *w = (float *)malloc(4 * n), *y = (float *)malloc(4 * n);
    int at = 0;
    if (n % 8 != 0) return;
    for (int c = 0; c < n; c++)
        if (fabs(b->x[c]) > fabs(b->x[at])) at = c;
    const int a = at / n2, j = at % n2;
    device_row(w, row, n, m);
    uint16_t *u = to_bf16(w, n);
    device_products(y, u, b);
    printf("     largest X'[%d, %d] %.8g, may be %.2g off; U and Y at a border of bf16:\n", a,
           j, b->x[at], b->e[at]);
    for (int i = 0; i < n1; i++)
        for (int k = 0; k < n2; k++) {
            const int c = i * n2 + k;
            print_border("U", i, k, v[c], w[c],
                         (double)b->left[i * n1 + a] * b->right[k * n2 + j]);
        }
    for (int i = 0; i < n1; i++) {
        double exact = 0;
        for (int k = 0; k < n2; k++) exact += b->u[i * n2 + k] * b->right[k * n2 + j];
        print_border("Y", i, j, exact, y[i * n2 + j], b->left[i * n1 + a]);
    }
    free(w);
    free(y);
    free(u);
}
