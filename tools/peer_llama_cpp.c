/* peer_llama_cpp.c - the shapes of `flatiron bench` on llama.cpp and ggml, to compare with.
 *
 * Built by tools/peer_llama_cpp.sh against the sources in PyPI's llama-cpp-python; no part of
 * the program.
 *
 *   peer matmul [-t N] [-r N] [--types q4_0,q8_0,bf16] [MxNxK ...]
 *   peer make FILE [--type q4_0|q8_0|bf16] [--head q6_K|TYPE] [--layers N]
 *   peer model FILE [--less FILE] [-p N] [-n N] [-r N] [-t N] [-i]
 *   peer quantize IN OUT --type q4_0|q4_K_S|q4_K_M|q8_0|f16|bf16 [--head TYPE]
 *   peer kl IDS FLOAT FILE... [--seq-len N] [--limit N] [--kv TYPE] [-t N]
 *
 * matmul: y [M, N] = x [M, K] * W^T, weights in the buffer type that llama.cpp would choose
 * (AMX, repacked, plain); for M < 16 as many different weights in turn as make 1 GB. make: a
 * GGUF of a LLaMA-3-8B's shape with random weights, its head in the type that llama-quantize
 * gives it. model: prefill and decode of such a file; with --less the same of a second file of
 * fewer layers in the same rounds, and then what 32 layers take: 32 times the time per layer,
 * which is the difference, and what the layers do not explain once. quantize: llama.cpp's own
 * llama_model_quantize; --head is the type of head and embedding, else llama.cpp's choice. kl:
 * perplexity, KL divergence from FLOAT and top-1 agreement with it as `flatiron eval --ppl
 * --baseline` defines them; IDS has the text's tokens in decimal. FLOAT runs with a float32
 * cache, the others with one of TYPE (f16). One CSV line per measurement; with -i each round
 * of `model` waits for a line on stdin, so that a script can run it in turn with another
 * program.
 * SPDX-License-Identifier: MIT */
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"
#include "gguf.h"
#include "llama.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MAX_REPEATS = 1000, MAX_COPIES = 256, FEW_ROWS = 16, MAX_NODES = 8 };
enum { ALL_LAYERS = 32, MAX_FILES = 16 };
enum { HIDDEN = 4096, FFN = 14336, HEADS = 32, KV_HEADS = 8, HEAD_DIM = 128, VOCAB = 128256 };
#define COPIES_BYTES ((size_t)1 << 30)

static void die(const char *what, const char *why)
{
    (void)fprintf(stderr, "peer: %s: %s\n", what, why);
    exit(1);
}

static void quiet(enum ggml_log_level level, const char *text, void *user)
{
    (void)user;
    if (level == GGML_LOG_LEVEL_ERROR) (void)fputs(text, stderr);
}

static double now_ms(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int n)
{
    qsort(values, (size_t)n, sizeof *values, compare);
    return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

/* ---- command line ------------------------------------------------------------------------ */

static const char *option(int argc, char **argv, const char *name, const char *fallback)
{
    for (int i = 0; i + 1 < argc; i++)
        if (strcmp(argv[i], name) == 0) return argv[i + 1];
    return fallback;
}

static int number(int argc, char **argv, const char *name, int fallback)
{
    const char *text = option(argc, argv, name, NULL);
    char *end = NULL;
    const long n = text ? strtol(text, &end, 10) : fallback;
    if (n < 1 || n > 1 << 20 || (end && *end)) die(name, "wants a number above 0");
    return (int)n;
}

static int repeats(int argc, char **argv)
{
    const int n = number(argc, argv, "-r", 5);
    return n < MAX_REPEATS ? n : MAX_REPEATS;
}

static enum ggml_type type_of(const char *name, size_t n)
{
    for (int t = 0; t < GGML_TYPE_COUNT; t++) {
        const char *known = ggml_type_name((enum ggml_type)t);
        if (known && strlen(known) == n && strncmp(known, name, n) == 0)
            return (enum ggml_type)t;
    }
    die(name, "no such type");
    return GGML_TYPE_F32;
}

/* ---- random weights ---------------------------------------------------------------------- */

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* Where a block of the type has its half-precision scale, and the root mean square of what the
 * scale multiplies when the other bytes are random. */
static void block_of(enum ggml_type type, size_t *scale_at, double *rms)
{
    *scale_at = 0;
    *rms = type == GGML_TYPE_Q4_0 ? 4.6 : 73;
    if (type == GGML_TYPE_Q6_K) {
        *scale_at = ggml_type_size(type) - sizeof(ggml_fp16_t);
        *rms = 18.5 * 73; /* times an 8-bit scale per 16 */
    }
}

/* n_bytes of whole blocks, values of about 1 / sqrt(K). */
static void fill(void *data, size_t n_bytes, enum ggml_type type, int K, uint64_t seed)
{
    uint64_t state = seed * 0x9e3779b97f4a7c15u | 1;
    unsigned char *bytes = data;
    size_t scale_at;
    double rms;
    for (size_t i = 0; i < n_bytes; i += sizeof state) {
        uint64_t r = next_random(&state);
        if (type == GGML_TYPE_BF16) r = (r & 0x807f807f807f807fu) | 0x3c003c003c003c00u;
        memcpy(bytes + i, &r, n_bytes - i < sizeof r ? n_bytes - i : sizeof r);
    }
    if (type == GGML_TYPE_BF16) return;
    block_of(type, &scale_at, &rms);
    const ggml_fp16_t scale = ggml_fp32_to_fp16((float)(1 / (rms * sqrt((double)K))));
    for (size_t at = 0; at < n_bytes; at += ggml_type_size(type))
        memcpy(bytes + at + scale_at, &scale, sizeof scale);
}

/* ---- matmul ------------------------------------------------------------------------------ */

/* The buffer type that llama.cpp's loader would pick for weight w of op. */
static ggml_backend_buffer_type_t pick_buffer(struct ggml_tensor *w, struct ggml_tensor *op)
{
    ggml_backend_dev_t dev = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    ggml_backend_dev_get_extra_bufts_t extras =
        (ggml_backend_dev_get_extra_bufts_t)ggml_backend_reg_get_proc_address(
            ggml_backend_dev_backend_reg(dev), "ggml_backend_dev_get_extra_bufts");
    ggml_backend_buffer_type_t *type = extras ? extras(dev) : NULL;
    for (; type && *type; type++) {
        w->buffer = ggml_backend_buft_alloc_buffer(*type, 0);
        const bool fits = ggml_backend_dev_supports_op(dev, op);
        ggml_backend_buffer_free(w->buffer);
        w->buffer = NULL;
        if (fits) return *type;
    }
    return ggml_backend_cpu_buffer_type();
}

/* A weight on its own: its context, its buffer, and the graph that multiplies with it. */
typedef struct product {
    struct ggml_context *ctx;
    ggml_backend_buffer_t weight_buffer, other_buffer;
    struct ggml_cgraph *graph;
} product;

static const char *product_init(product *p, enum ggml_type type, int M, int N, int K,
                                const void *data, size_t n_bytes, const float *x)
{
    const size_t overhead = ggml_tensor_overhead() * 4 + ggml_graph_overhead_custom(4, false);
    p->ctx = ggml_init((struct ggml_init_params){overhead, NULL, true});
    struct ggml_tensor *w = ggml_new_tensor_2d(p->ctx, type, K, N);
    struct ggml_tensor *in = ggml_new_tensor_2d(p->ctx, GGML_TYPE_F32, K, M);
    struct ggml_tensor *y = ggml_mul_mat(p->ctx, w, in);
    ggml_backend_buffer_type_t kind = pick_buffer(w, y);
    p->weight_buffer =
        ggml_backend_buft_alloc_buffer(kind, ggml_backend_buft_get_alloc_size(kind, w) + 64);
    if (!p->weight_buffer) die("matmul", "out of memory");
    if (ggml_backend_tensor_alloc(p->weight_buffer, w,
                                  ggml_backend_buffer_get_base(p->weight_buffer)))
        die("matmul", "the weight has no place");
    ggml_backend_buffer_set_usage(p->weight_buffer, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    p->other_buffer =
        ggml_backend_alloc_ctx_tensors_from_buft(p->ctx, ggml_backend_cpu_buffer_type());
    ggml_backend_tensor_set(w, data, 0, n_bytes);
    ggml_backend_tensor_set(in, x, 0, ggml_nbytes(in));
    p->graph = ggml_new_graph_custom(p->ctx, 4, false);
    ggml_build_forward_expand(p->graph, y);
    return ggml_backend_buft_name(kind);
}

static void product_fini(product *p)
{
    ggml_backend_buffer_free(p->other_buffer);
    ggml_backend_buffer_free(p->weight_buffer);
    ggml_free(p->ctx);
}

static void matmul_one(ggml_backend_t cpu, enum ggml_type type, int M, int N, int K, int n,
                       int n_threads)
{
    static product products[MAX_COPIES];
    static double ms[MAX_REPEATS];
    const size_t n_bytes = ggml_row_size(type, K) * (size_t)N;
    const size_t wanted = M < FEW_ROWS ? COPIES_BYTES / n_bytes + 1 : 1;
    const int n_copies = (int)(wanted < MAX_COPIES ? wanted : MAX_COPIES);
    const char *buffer = "";
    float *x = malloc((size_t)M * (size_t)K * sizeof *x);
    void *data = malloc(n_bytes);
    uint64_t state = 1;
    if (!x || !data) die("matmul", "out of memory");
    for (size_t i = 0; i < (size_t)M * (size_t)K; i++)
        x[i] = (float)(next_random(&state) >> 40) * 0x1p-23f - 1;
    for (int i = 0; i < n_copies; i++) {
        fill(data, n_bytes, type, K, (uint64_t)i + 1);
        buffer = product_init(&products[i], type, M, N, K, data, n_bytes, x);
    }
    for (int i = 0; i < 2; i++)
        (void)ggml_backend_graph_compute(cpu, products[i % n_copies].graph);
    for (int r = 0; r < n; r++) { /* few rows: through all copies once */
        const double start = now_ms();
        for (int i = 0; i < n_copies; i++)
            if (ggml_backend_graph_compute(cpu, products[i].graph)) die("matmul", "failed");
        ms[r] = (now_ms() - start) / n_copies;
    }
    const double t = median(ms, n);
    (void)printf("matmul,%s,%s,%d,%d,%d,%d,%.4f,%.4f,%.2f\n", ggml_type_name(type), buffer, M,
                 N, K, n_threads, t, 2.0 * M * N * K / t * 1e-9, (double)n_bytes / t * 1e-6);
    (void)fflush(stdout);
    for (int i = 0; i < n_copies; i++) product_fini(&products[i]);
    free(x);
    free(data);
}

static void matmul(int argc, char **argv)
{
    static const int built_in[][3] = {
        {512, 6144, 4096}, {512, 4096, 4096}, {512, 28672, 4096}, {512, 4096, 14336},
        {1, 6144, 4096},   {1, 4096, 4096},   {1, 28672, 4096},   {1, 4096, 14336}};
    const int n_threads = number(argc, argv, "-t", 2), n = repeats(argc, argv);
    ggml_backend_t cpu = ggml_backend_cpu_init();
    bool own = false;
    ggml_backend_cpu_set_n_threads(cpu, n_threads);
    (void)printf("what,type,buffer,M,N,K,threads,ms,tops,gb_s\n");
    const char *types = option(argc, argv, "--types", "q4_0,q8_0,bf16");
    for (const char *at = types; *at; at += strcspn(at, ",") + (at[strcspn(at, ",")] == ',')) {
        const enum ggml_type type = type_of(at, strcspn(at, ","));
        for (int i = 0; i < argc; i++) {
            int M, N, K;
            if (sscanf(argv[i], "%dx%dx%d", &M, &N, &K) != 3) continue;
            own = true;
            matmul_one(cpu, type, M, N, K, n, n_threads);
        }
        for (size_t i = 0; !own && i < sizeof built_in / sizeof *built_in; i++)
            matmul_one(cpu, type, built_in[i][0], built_in[i][1], built_in[i][2], n, n_threads);
    }
    ggml_backend_free(cpu);
}

/* ---- make -------------------------------------------------------------------------------- */

static void add_matrix(struct gguf_context *file, struct ggml_context *ctx, const char *name,
                       enum ggml_type type, int n_out, int n_in)
{
    struct ggml_tensor *t = ggml_new_tensor_2d(ctx, type, n_in, n_out);
    gguf_add_tensor(file, ggml_set_name(t, name));
}

static void add_norm(struct gguf_context *file, struct ggml_context *ctx, const char *name)
{
    gguf_add_tensor(file, ggml_set_name(ggml_new_tensor_1d(ctx, GGML_TYPE_F32, HIDDEN), name));
}

static void add_layer(struct gguf_context *file, struct ggml_context *ctx, enum ggml_type type,
                      int layer)
{
    static const struct {
        const char *name;
        int n_out, n_in;
    } matrices[] = {{"attn_q", HEADS * HEAD_DIM, HIDDEN},
                    {"attn_k", KV_HEADS * HEAD_DIM, HIDDEN},
                    {"attn_v", KV_HEADS * HEAD_DIM, HIDDEN},
                    {"attn_output", HIDDEN, HEADS * HEAD_DIM},
                    {"ffn_gate", FFN, HIDDEN},
                    {"ffn_up", FFN, HIDDEN},
                    {"ffn_down", HIDDEN, FFN}};
    char name[64];
    for (size_t i = 0; i < sizeof matrices / sizeof *matrices; i++) {
        (void)snprintf(name, sizeof name, "blk.%d.%s.weight", layer, matrices[i].name);
        add_matrix(file, ctx, name, type, matrices[i].n_out, matrices[i].n_in);
    }
    (void)snprintf(name, sizeof name, "blk.%d.attn_norm.weight", layer);
    add_norm(file, ctx, name);
    (void)snprintf(name, sizeof name, "blk.%d.ffn_norm.weight", layer);
    add_norm(file, ctx, name);
}

static void set_sizes(struct gguf_context *file, int n_layers)
{
    gguf_set_val_str(file, "general.architecture", "llama");
    gguf_set_val_str(file, "general.name", "random weights of a LLaMA-3-8B's shape");
    gguf_set_val_u32(file, "llama.block_count", (uint32_t)n_layers);
    gguf_set_val_u32(file, "llama.context_length", 8192);
    gguf_set_val_u32(file, "llama.embedding_length", HIDDEN);
    gguf_set_val_u32(file, "llama.feed_forward_length", FFN);
    gguf_set_val_u32(file, "llama.attention.head_count", HEADS);
    gguf_set_val_u32(file, "llama.attention.head_count_kv", KV_HEADS);
    gguf_set_val_f32(file, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    gguf_set_val_u32(file, "llama.rope.dimension_count", HEAD_DIM);
    gguf_set_val_f32(file, "llama.rope.freq_base", 500000);
    gguf_set_val_u32(file, "llama.vocab_size", VOCAB);
    gguf_set_val_str(file, "tokenizer.ggml.model", "no_vocab");
}

/* The tensors' data behind the header, in the order and at the offsets that it gives. */
static void write_data(FILE *f, const struct gguf_context *file, struct ggml_context *ctx)
{
    static const char zeros[256];
    size_t at = 0;
    for (int64_t i = 0; i < gguf_get_n_tensors(file); i++) {
        const struct ggml_tensor *t = ggml_get_tensor(ctx, gguf_get_tensor_name(file, i));
        const size_t n_bytes = ggml_nbytes(t), offset = gguf_get_tensor_offset(file, i);
        if (fwrite(zeros, 1, offset - at, f) != offset - at) die("make", "write failed");
        void *data = malloc(n_bytes);
        if (!data) die("make", "out of memory");
        if (t->type == GGML_TYPE_F32)
            for (int64_t k = 0; k < t->ne[0]; k++) ((float *)data)[k] = 1;
        else fill(data, n_bytes, t->type, (int)t->ne[0], (uint64_t)i + 1);
        if (fwrite(data, 1, n_bytes, f) != n_bytes) die("make", "write failed");
        free(data);
        at = offset + n_bytes;
    }
    const size_t rest = GGML_PAD(at, gguf_get_alignment(file)) - at;
    if (fwrite(zeros, 1, rest, f) != rest) die("make", "write failed");
}

static void make(int argc, char **argv)
{
    const char *name = option(argc, argv, "--type", "q4_0");
    const enum ggml_type type = type_of(name, strlen(name));
    const char *head = option(argc, argv, "--head", type == GGML_TYPE_Q4_0 ? "q6_K" : name);
    const int n_layers = number(argc, argv, "--layers", 16);
    struct gguf_context *file = gguf_init_empty();
    struct ggml_context *ctx = ggml_init((struct ggml_init_params){
        ggml_tensor_overhead() * (size_t)(16 + 16 * n_layers), NULL, true});
    if (argc < 1) die("make", "wants a file");
    set_sizes(file, n_layers);
    add_matrix(file, ctx, "token_embd.weight", type, VOCAB, HIDDEN);
    add_norm(file, ctx, "output_norm.weight");
    add_matrix(file, ctx, "output.weight", type_of(head, strlen(head)), VOCAB, HIDDEN);
    for (int i = 0; i < n_layers; i++) add_layer(file, ctx, type, i);
    FILE *f = fopen(argv[0], "wb");
    if (!f || !gguf_write_to_file_ptr(file, f, true)) die(argv[0], "cannot be written");
    write_data(f, file, ctx);
    if (fclose(f)) die(argv[0], "cannot be written");
    gguf_free(file);
    ggml_free(ctx);
}

/* ---- model ------------------------------------------------------------------------------- */

/* A model of the speed measurement and its rounds: ms of a prefill, ms of a decoded token. */
typedef struct runner {
    struct llama_model *model; /* NULL: there is none */
    struct llama_context *ctx;
    double prefill[MAX_REPEATS], decode[MAX_REPEATS];
} runner;

static struct llama_model *load_model(const char *name)
{
    struct llama_model_params p = llama_model_default_params();
    p.load_mode = LLAMA_LOAD_MODE_NONE;
    struct llama_model *m = llama_model_load_from_file(name, p);
    if (!m) die(name, "cannot be loaded");
    return m;
}

static void runner_init(runner *r, const char *name, int n_tokens, int n_batch, int n_threads)
{
    struct llama_context_params p = llama_context_default_params();
    r->model = load_model(name);
    p.n_ctx = (uint32_t)n_tokens;
    p.n_batch = (uint32_t)n_batch;
    p.n_threads = p.n_threads_batch = n_threads;
    r->ctx = llama_init_from_model(r->model, p);
    if (!r->ctx) die(name, "no context");
}

static void runner_fini(runner *r)
{
    llama_free(r->ctx);
    llama_model_free(r->model);
}

static double timed(struct llama_context *ctx, llama_token *tokens, int n)
{
    const double start = now_ms();
    if (llama_decode(ctx, llama_batch_get_one(tokens, n))) die("model", "decoding failed");
    llama_synchronize(ctx);
    if (!llama_get_logits_ith(ctx, -1)) die("model", "no logits");
    return now_ms() - start;
}

/* One prefill and the decode behind it; round -1 is the one to warm up. */
static void runner_round(runner *r, llama_token *tokens, int n_prompt, int n_predict, int round)
{
    const int n_layers = llama_model_n_layer(r->model);
    double decode = 0;
    llama_memory_clear(llama_get_memory(r->ctx), true);
    const double prefill = timed(r->ctx, tokens, n_prompt);
    for (int i = 0; i < n_predict; i++) decode += timed(r->ctx, tokens + i % n_prompt, 1);
    decode /= n_predict;
    if (round < 0) return;
    r->prefill[round] = prefill;
    r->decode[round] = decode;
    (void)printf("model,%d,prefill,%d,%.3f,%.2f\nmodel,%d,decode,%d,%.3f,%.2f\n", round,
                 n_layers, prefill, n_prompt / prefill * 1e3, round, n_layers, decode,
                 1e3 / decode);
}

/* Time of all layers from the medians of a model's and of one with fewer layers. */
static void all_layers(const char *phase, double more, int n_more, double less, int n_less,
                       int n_tokens)
{
    const double layer = (more - less) / (n_more - n_less);
    const double all = layer * ALL_LAYERS + more - layer * n_more;
    (void)printf("all,%.3f,%s,%d,%.3f,%.2f\n", layer, phase, ALL_LAYERS, all,
                 n_tokens / all * 1e3);
}

static void model(int argc, char **argv)
{
    static runner runners[2];
    const int n_prompt = number(argc, argv, "-p", 512);
    const int n_predict = number(argc, argv, "-n", 128);
    const int n_threads = number(argc, argv, "-t", 2), n = repeats(argc, argv);
    const char *less = option(argc, argv, "--less", NULL);
    const int n_runners = less ? 2 : 1;
    char line[64];
    bool waits = false;
    int n_done = 0;
    for (int i = 0; i < argc; i++) waits = waits || strcmp(argv[i], "-i") == 0;
    if (argc < 1) die("model", "wants a file");
    llama_backend_init();
    for (int i = 0; i < n_runners; i++)
        runner_init(&runners[i], i ? less : argv[0], n_prompt + n_predict, n_prompt, n_threads);
    const int n_more = llama_model_n_layer(runners[0].model);
    const int n_less = less ? llama_model_n_layer(runners[1].model) : 0;
    if (n_more <= n_less) die(less, "wants fewer layers than the other file");
    llama_token *tokens = malloc((size_t)n_prompt * sizeof *tokens);
    uint64_t state = 7;
    if (!tokens) die("model", "out of memory");
    for (int i = 0; i < n_prompt; i++) tokens[i] = (llama_token)(next_random(&state) % VOCAB);
    for (int i = 0; i < n_runners; i++)
        runner_round(&runners[i], tokens, n_prompt, n_predict < 2 ? n_predict : 2, -1);
    (void)printf("what,round,phase,layers,ms,tokens_s\n"); /* "all": ms per layer, no round */
    (void)fflush(stdout);
    while (n_done < n && (!waits || fgets(line, sizeof line, stdin))) {
        for (int i = 0; i < n_runners; i++)
            runner_round(&runners[i], tokens, n_prompt, n_predict, n_done);
        n_done++;
        (void)printf("round,%d,,,,\n", n_done);
        (void)fflush(stdout);
    }
    if (less && n_done > 0) {
        all_layers("prefill", median(runners[0].prefill, n_done), n_more,
                   median(runners[1].prefill, n_done), n_less, n_prompt);
        all_layers("decode", median(runners[0].decode, n_done), n_more,
                   median(runners[1].decode, n_done), n_less, 1);
    }
    free(tokens);
    for (int i = 0; i < n_runners; i++) runner_fini(&runners[i]);
}

/* ---- quantize ---------------------------------------------------------------------------- */

static enum llama_ftype ftype_of(const char *name)
{
    static const struct {
        const char *name;
        enum llama_ftype type;
    } known[] = {{"q4_0", LLAMA_FTYPE_MOSTLY_Q4_0},     {"q4_K_S", LLAMA_FTYPE_MOSTLY_Q4_K_S},
                 {"q4_K_M", LLAMA_FTYPE_MOSTLY_Q4_K_M}, {"q8_0", LLAMA_FTYPE_MOSTLY_Q8_0},
                 {"f16", LLAMA_FTYPE_MOSTLY_F16},       {"bf16", LLAMA_FTYPE_MOSTLY_BF16}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(name, known[i].name) == 0) return known[i].type;
    die(name, "no such type of file");
    return LLAMA_FTYPE_ALL_F32;
}

static void quantize(int argc, char **argv)
{
    const char *head = option(argc, argv, "--head", NULL);
    if (argc < 2) die("quantize", "wants two files");
    struct llama_model_quantize_params p = llama_model_quantize_default_params();
    p.nthread = number(argc, argv, "-t", 2);
    p.ftype = ftype_of(option(argc, argv, "--type", "q4_0"));
    if (head) p.output_tensor_type = p.token_embedding_type = type_of(head, strlen(head));
    if (llama_model_quantize(argv[0], argv[1], &p)) die(argv[1], "cannot be made");
}

/* ---- kl ---------------------------------------------------------------------------------- */

/* A model of the accuracy measurement and its sums over the predictions so far. */
typedef struct judged {
    struct llama_model *model;
    struct llama_context *ctx;
    double nll, kl, agree;
} judged;

static void judged_init(judged *j, const char *name, int seq_len, enum ggml_type kv,
                        int n_threads)
{
    struct llama_context_params p = llama_context_default_params();
    j->model = load_model(name);
    p.n_ctx = p.n_batch = p.n_ubatch = (uint32_t)seq_len;
    p.n_threads = p.n_threads_batch = n_threads;
    p.type_k = p.type_v = kv;
    if (kv == GGML_TYPE_F32) p.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    j->ctx = llama_init_from_model(j->model, p);
    if (!j->ctx) die(name, "no context");
}

/* All of the file's numbers, *n of them; the caller frees them. */
static llama_token *read_ids(const char *name, int *n)
{
    int room = 1 << 20;
    llama_token *ids = malloc((size_t)room * sizeof *ids);
    FILE *f = fopen(name, "r");
    if (!f || !ids) die(name, "cannot be read");
    for (*n = 0; fscanf(f, "%d", &ids[*n]) == 1;)
        if (++*n == room && !(ids = realloc(ids, (size_t)(room *= 2) * sizeof *ids)))
            die(name, "out of memory");
    (void)fclose(f);
    return ids;
}

/* Logits [seq_len, n_vocab] of a window, the context's own. */
static const float *window(judged *j, struct llama_batch *batch, const llama_token *ids,
                           int seq_len)
{
    batch->n_tokens = seq_len;
    for (int i = 0; i < seq_len; i++) {
        batch->token[i] = ids[i];
        batch->pos[i] = i;
        batch->n_seq_id[i] = 1;
        batch->seq_id[i][0] = 0;
        batch->logits[i] = 1;
    }
    llama_memory_clear(llama_get_memory(j->ctx), true);
    if (llama_decode(j->ctx, *batch)) die("kl", "decoding failed");
    return llama_get_logits(j->ctx);
}

static double log_sum_exp(const float *row, int n, int *best)
{
    double sum = 0;
    *best = 0;
    for (int i = 1; i < n; i++)
        if (row[i] > row[*best]) *best = i;
    for (int i = 0; i < n; i++) sum += exp((double)row[i] - row[*best]);
    return log(sum) + row[*best];
}

/* One prediction: base's row of logits and the model's. */
static void judge(judged *j, const float *base, const float *row, int n_vocab, int target)
{
    int best, base_best;
    double kl = 0;
    const double lse_b = log_sum_exp(base, n_vocab, &base_best);
    const double lse = log_sum_exp(row, n_vocab, &best);
    for (int i = 0; i < n_vocab; i++)
        kl += exp(base[i] - lse_b) * ((base[i] - lse_b) - (row[i] - lse));
    j->nll += lse - row[target];
    j->kl += kl;
    j->agree += best == base_best;
}

static void kl(int argc, char **argv)
{
    static judged models[MAX_FILES];
    const int seq_len = number(argc, argv, "--seq-len", 1024);
    const int limit = number(argc, argv, "--limit", 1 << 20);
    const int n_threads = number(argc, argv, "-t", 2);
    const char *kv = option(argc, argv, "--kv", "f16");
    int n_files = 0, n_ids;
    while (1 + n_files < argc && argv[1 + n_files][0] != '-') n_files++;
    if (n_files < 1 || n_files > MAX_FILES) die("kl", "wants ids, a float file and others");
    llama_backend_init();
    for (int i = 0; i < n_files; i++)
        judged_init(&models[i], argv[1 + i], seq_len,
                    i ? type_of(kv, strlen(kv)) : GGML_TYPE_F32, n_threads);
    const int n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(models[0].model));
    llama_token *ids = read_ids(argv[0], &n_ids);
    struct llama_batch batch = llama_batch_init(seq_len, 0, 1);
    const int n_windows = n_ids / seq_len < limit ? n_ids / seq_len : limit;
    const double n = (double)n_windows * (seq_len - 1);
    if (n_windows < 1) die(argv[0], "not one window");
    for (int w = 0; w < n_windows; w++) {
        const llama_token *at = ids + (size_t)w * (size_t)seq_len;
        const float *base = window(&models[0], &batch, at, seq_len);
        for (int i = 0; i < n_files; i++) {
            const float *rows = i ? window(&models[i], &batch, at, seq_len) : base;
            for (int t = 0; t + 1 < seq_len; t++)
                judge(&models[i], base + (size_t)t * (size_t)n_vocab,
                      rows + (size_t)t * (size_t)n_vocab, n_vocab, at[t + 1]);
        }
    }
    (void)printf("what,file,bits_per_weight,kv,windows,ppl,kl,top1\n");
    for (int i = 0; i < n_files; i++) {
        judged *j = &models[i];
        (void)printf("kl,%s,%.2f,%s,%d,%.4f,%.5f,%.4f\n", argv[1 + i],
                     8.0 * (double)llama_model_size(j->model) /
                         (double)llama_model_n_params(j->model),
                     i ? kv : "f32", n_windows, exp(j->nll / n), j->kl / n, j->agree / n);
        llama_free(j->ctx);
        llama_model_free(j->model);
    }
    llama_batch_free(batch);
    free(ids);
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    llama_log_set(quiet, NULL); /* ggml's as well */
    if (strcmp(what, "matmul") == 0) matmul(argc - 2, argv + 2);
    else if (strcmp(what, "make") == 0) make(argc - 2, argv + 2);
    else if (strcmp(what, "model") == 0) model(argc - 2, argv + 2);
    else if (strcmp(what, "quantize") == 0) quantize(argc - 2, argv + 2);
    else if (strcmp(what, "kl") == 0) kl(argc - 2, argv + 2);
    else die("usage", "peer matmul|make|model|quantize|kl ..., see peer_llama_cpp.c");
    return 0;
}
