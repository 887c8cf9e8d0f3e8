/* flatiron.h - the public interface of libflatiron, and its only installed header.
 *
 * What is here: an engine (a model opened from its directory, float or quantised), a session
 * (one sequence being decoded), and the jobs that people start from the command line: quantise,
 * eval, verify, kernel bench. Conventions for all of it:
 *   - Every call that can fail returns fl_status: FL_OK (0) or a negative code. The text goes
 *     into the optional err, one line "<what>: <where>: <why>; <what to do>".
 *   - Out-parameters come first, are set to NULL on entry and receive ownership on success.
 *   - _open/_close, _new/_free pairs; closing takes the address of the pointer and NULLs it.
 *   - Option structs are filled by their _defaults function first; fields say their default.
 *   - The library prints nothing, reads no environment variables and never exits.
 * SPDX-License-Identifier: MIT */
#ifndef FLATIRON_H
#define FLATIRON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define FL_API __attribute__((visibility("default")))
#else
#define FL_API
#endif

#define FL_VERSION "0.1.0"

/* Status codes. fl_exit_code maps them to the exit codes of the command line. */
typedef enum fl_status {
    FL_OK = 0,
    FL_E_FAIL = -1,        /* run-time failure                        exit 1   */
    FL_E_USAGE = -2,       /* options that make no sense              exit 2   */
    FL_E_INPUT = -3,       /* bad input file                          exit 3   */
    FL_E_NOMEM = -4,       /* out of memory                           exit 4   */
    FL_E_NOSPACE = -5,     /* out of disk                             exit 4   */
    FL_E_GATE = -6,        /* quality gate failed                     exit 5   */
    FL_E_UNSUPPORTED = -7, /* unsupported model, field or device      exit 6   */
    FL_E_INTERRUPTED = -8, /* stop was asked for; checkpoint is valid exit 130 */
    FL_E_IO = -9,          /* the system failed a read or a write     exit 1   */
} fl_status;

typedef struct fl_err {
    char text[768];
} fl_err;

FL_API int fl_exit_code(fl_status status);
FL_API const char *fl_version(void);

typedef enum fl_log_level { FL_LOG_INFO, FL_LOG_WARN } fl_log_level;
/* Sink for messages; write may be NULL. line has no newline, valid during the call only. */
typedef struct fl_log {
    void (*write)(void *user, fl_log_level level, const char *line);
    void *user;
} fl_log;

/* ---- engine: a model in memory ----------------------------------------------------------- */

typedef struct fl_engine fl_engine;

typedef struct fl_engine_options {
    const char *isa; /* highest instruction set to use: ref, avx2, avxvnni, avx512, avx512vnni,
                        amx, or native (default): all that the machine has */
    int n_threads;   /* 0 (default): one per physical core */
    const char *device; /* "cpu" (default; NULL is the same), "cuda", "cuda:N" */
    fl_log log;      /* default: silence */
} fl_engine_options;
FL_API void fl_engine_options_defaults(fl_engine_options *o);

typedef struct fl_engine_info {
    const char *family;       /* "llama" or "opt"; strings are owned by the engine */
    const char *quant_method; /* "none": a float checkpoint; "flattenquant", "rtn", ... */
    const char *isa;          /* level in use, e.g. "amx" */
    const char *device;       /* that runs it: "cpu", or a GPU's name */
    int n_threads, n_layers, hidden_size, vocab_size, n_positions; /* n_positions: context */
    int64_t n_params;
    int w_bits, a_bits;    /* 16 on the float path; 0: mixed 4/8 */
    const char *kv_format; /* of the cache: "f32", "bf16", "int8", "int4", "int3", "int2"; keys
                              and values, where they differ, as "int4/int2" */
    int head_bits;
    size_t weight_bytes; /* bytes of weights the forward pass reads, embedding rows apart */
} fl_engine_info;

/* Opens the model directory (Hugging Face layout, float or written by fl_quantize_run). Weights
 * are mapped, integer weights repacked for this machine's kernels.
 * With a device other than the CPU they go to its memory instead; that needs
 * libflatiron-cuda.so (`make cuda`), looked for beside the program or library and in the
 * library path.
 * Errors: FL_E_INPUT, FL_E_UNSUPPORTED (also: no such device, no plugin, a model that the
 * device does not run), FL_E_NOMEM, FL_E_IO, FL_E_USAGE (unknown isa or device). */
FL_API fl_status fl_engine_open(fl_engine **out, const char *model_dir,
                                const fl_engine_options *options, fl_err *err);
FL_API void fl_engine_close(fl_engine **engine);
FL_API void fl_engine_get_info(const fl_engine *engine, fl_engine_info *info);

/* Token ids of text (n_bytes bytes, any bytes: invalid UTF-8 is read as U+FFFD). add_special:
 * apply the tokenizer's post-processor (BOS and the like). *ids is allocated; free with
 * fl_ids_free. */
FL_API fl_status fl_engine_encode(int32_t **ids, size_t *n_ids, const fl_engine *engine,
                                  const char *text, size_t n_bytes, bool add_special,
                                  fl_err *err);
FL_API void fl_ids_free(int32_t **ids);

/* ---- session: generate from one sequence ------------------------------------------------- */

typedef struct fl_session fl_session;

typedef struct fl_session_options {
    int n_positions; /* room in the KV cache; 0 (default): the model's context */
} fl_session_options;
FL_API void fl_session_options_defaults(fl_session_options *o);

/* The engine must outlive the session. All memory of decoding is taken here. */
FL_API fl_status fl_session_new(fl_session **out, fl_engine *engine,
                                const fl_session_options *options, fl_err *err);
FL_API void fl_session_free(fl_session **session);

/* Feeds n_ids tokens after those already there; *logits (borrowed, [vocab_size], valid until
 * the next call) are those after the last one. FL_E_USAGE when the context would overflow or an
 * id is out of range. */
FL_API fl_status fl_session_feed(fl_session *session, const int32_t *ids, size_t n_ids,
                                 const float **logits, fl_err *err);
/* Forgets all tokens from position n_keep on. */
FL_API void fl_session_truncate(fl_session *session, size_t n_keep);
FL_API size_t fl_session_length(const fl_session *session);

typedef struct fl_sample_options {
    float temperature;    /* 0: greedy. default 0.8 */
    int top_k;            /* 0: off. default 40 */
    float top_p;          /* 1: off. default 0.95 */
    float min_p;          /* 0: off. default 0.05 */
    float repeat_penalty; /* 1 (default): off; over the last 64 tokens */
    uint64_t seed;        /* default 0 */
} fl_sample_options;
FL_API void fl_sample_options_defaults(fl_sample_options *o);

typedef struct fl_generate_options {
    const char *prompt; /* n_prompt_bytes, any bytes */
    size_t n_prompt_bytes;
    const char *prompt_path; /* NULL (default), or a file whose text is the prompt */
    int n_predict;           /* default 128; < 0: until the end token or the context's end */
    bool special;            /* default false: special tokens add nothing to the text */
    fl_sample_options sample;
    /* Called after each token with the whole UTF-8 characters that it completed (n_bytes may be
     * 0); return false to stop. May be NULL. */
    bool (*on_text)(void *user, const char *text, size_t n_bytes);
    void *user;
} fl_generate_options;
FL_API void fl_generate_options_defaults(fl_generate_options *o);

typedef struct fl_generate_result {
    char *text; /* owned, NUL-terminated */
    size_t n_text_bytes;
    int32_t *ids; /* owned, the generated tokens without the end token */
    int n_prompt_tokens, n_tokens;
    const char *finish_reason; /* "stop" (end token), "length" (n_predict or context),
                                  "cancelled" */
    double prefill_s, decode_s;
} fl_generate_result;
/* Continues the session's sequence with the prompt (the tokenizer's post-processor is applied
 * when the session is empty) and n_predict tokens; the last of them is not fed back. On failure
 * *result is empty. FL_E_USAGE (options, a prompt without tokens or longer than the context),
 * FL_E_INPUT (prompt_path), FL_E_NOMEM, FL_E_FAIL (the model's logits are no numbers). */
FL_API fl_status fl_session_generate(fl_generate_result *result, fl_session *session,
                                     const fl_generate_options *options, fl_err *err);
FL_API void fl_generate_result_fini(fl_generate_result *result);

/* ---- quantise ---------------------------------------------------------------------------- */

/* A yes/no that has a default of its own per method. */
typedef enum fl_switch { FL_AUTO = -1, FL_OFF = 0, FL_ON = 1 } fl_switch;

typedef struct fl_quantize_progress {
    const char *stage; /* "plan", "quantize", "write" */
    int block, n_blocks;     /* the block that was finished, from 0 */
    double elapsed_s, eta_s; /* eta_s NaN: not known */
    double loss; /* relative squared error of the block's output against the float block */
} fl_quantize_progress;

typedef struct fl_quantize_options {
    const char *model_dir, *out_dir;
    const char *method; /* required: flattenquant, flatquant, smoothquant, quarot, rtn */
    const char *preset; /* NULL or "paper": per-tensor weights, mean rule, KL selection */

    int w_bits, a_bits; /* 4, 8; 16 = float; 0: method's (flattenquant: 4/8 mix; others 4) */
    int kv_bits;        /* of the KV cache: 16 (default, bfloat16), 8, 4, 3, 2 */
    int k_bits, v_bits; /* keys and values apart; 0 (default): kv_bits */
    int head_bits;      /* of lm_head: 16 (default), as it is; 8: int8 per output channel, its
                           input int8 per token */
    const char *w_granularity; /* "channel" (default) or "tensor" */
    const char *a_granularity; /* "tensor", "token"; NULL: flattenquant tensor, others token */
    const char *weights;       /* "gptq" or "rtn"; NULL: flattenquant gptq, others rtn */

    /* calibration: a text file, or text sampled from the model itself */
    const char *calib_path; /* .txt, .jsonl with "text" fields; "self": the model samples it */
    int n_samples;          /* windows, default 128 */
    int seq_len;            /* 0 (default): min(2048, context) */
    uint64_t seed;          /* default 0 */

    /* FlattenQuant, methods.md section 1. Every stage can be switched off. */
    fl_switch smooth, suppress, flatten, unsigned_codes, bias_correction;
    double alpha;             /* smoothing exponent; < 0: searched per layer by output error */
    double beta;              /* threshold factor; < 0: searched per layer by output error */
    const char *threshold;    /* "mean" (default) or "iqr": T = Q3 + beta*IQR */
    double flatten_max_ratio; /* of every site; default 0.30 */
    double int4_ratio;        /* default 0.4829 */
    double gamma;             /* INT4 where D_4 - D_8 <= gamma; < 0 (default): by int4_ratio */
    const char *select;       /* "kl", "output" or "random": what ranks the layers for INT4 */
    fl_switch flatten_weights; /* FL_AUTO: off */
    double weight_beta;       /* its threshold factor, default 1.3 */

    /* GPTQ */
    double damping;        /* of the mean Hessian diagonal, default 0.05 */
    int gptq_block;        /* default 128 */
    fl_switch act_order;   /* columns by falling Hessian diagonal */
    fl_switch compensate;  /* first fit the float layer's output on the quantised inputs */

    /* FlatQuant, methods.md section 2 (and quarot's transform). Values below 0 and NULL: the
     * recipe's. */
    const char *recipe;    /* NULL (default) or "official": the published code's choices */
    const char *transform; /* "inverse", "svd", "random-kron", "hadamard", "none" */
    fl_switch learn_scale, learn_clip; /* per-channel scales; clips */
    fl_switch asymmetric;        /* per-token activations with a zero point */
    fl_switch clip_per_linear;   /* linears that share an input clip it each for itself */
    fl_switch centre;            /* OPT: means of inputs go into biases (FL_AUTO: flatquant) */
    fl_switch quantized_inputs;  /* train on what the quantised blocks before put out */
    int epochs, batch_windows, warmup_steps;
    double lr, min_lr;           /* AdamW, cosine from lr to min_lr */
    double clip_lr;              /* of the clips, times lr */
    double weight_lr;            /* of the weights, times lr; 0: weights stay as they are */
    double weight_decay, diag_alpha;
    const char *train_dtype;     /* "auto", "float32", "bf16": of the GEMMs in training */

    /* End-to-end tuning of norm gains and weight scales behind the last block. Values below 0:
     * the method's. */
    int tune_epochs;       /* passes over the calibration windows; 0: none */
    double tune_lr;        /* of factors on gains and scales */

    bool resume, dry_run;
    int redo_from;              /* < 0 (default): off; else first block to do again */
    double max_ppl_increase;    /* < 0 (default): no gate; over the float model, e.g. 0.05 */
    double max_kld;             /* < 0 (default): no gate */
    const char *gate_path;      /* text of the gates; NULL: calibration text */

    const char *isa; /* as in fl_engine_options */
    int n_threads;
    fl_log log;
    void (*on_progress)(void *user, const fl_quantize_progress *p);
    bool (*should_stop)(void *user); /* asked between units of work; true: stop there */
    void *user;                      /* of both callbacks */
} fl_quantize_options;
FL_API void fl_quantize_options_defaults(fl_quantize_options *o);

/* Quantises model_dir into out_dir, which must not exist; works in out_dir + ".partial", whose
 * content is a valid checkpoint at any moment, and renames it at the end. *report_json (owned,
 * free with fl_string_free) is the report that is saved as out_dir/flatiron_report.json; with
 * dry_run it is the estimate and nothing is written.
 * Errors: FL_E_USAGE, FL_E_INPUT, FL_E_UNSUPPORTED, FL_E_NOMEM, FL_E_NOSPACE, FL_E_IO,
 * FL_E_GATE, FL_E_INTERRUPTED. */
FL_API fl_status fl_quantize_run(char **report_json, const fl_quantize_options *options,
                                 fl_err *err);
FL_API void fl_string_free(char **s);

/* ---- eval, verify, inspect, bench: each returns one JSON document ------------------------ */

typedef struct fl_eval_options {
    const char *model_dir;
    const char *baseline_dir; /* float model to compare with, or NULL */
    const char *ppl_path;     /* text file, required */
    int seq_len;              /* 0 (default): min(2048, context) */
    int max_windows;          /* 0 (default): all */
    const char *device;       /* of both models, as in fl_engine_options */
    const char *isa;
    int n_threads;
    fl_log log;
    void (*on_progress)(void *user, int window, int n_windows, double ppl_so_far);
    bool (*should_stop)(void *user); /* asked between batches of windows; may be NULL */
    void *user;                      /* of both callbacks */
} fl_eval_options;
FL_API void fl_eval_options_defaults(fl_eval_options *o);

/* What was evaluated: a figure without it means little. */
typedef struct fl_eval_model {
    char quant_method[32]; /* as in fl_engine_info, like all of these; "": no baseline */
    int w_bits, a_bits, head_bits;
    const char *kv_format;
    size_t weight_bytes;
} fl_eval_model;

typedef struct fl_eval_result {
    double ppl;
    double baseline_ppl, kld_mean, top1_agreement; /* NaN without a baseline */
    int windows, seq_len;
    int64_t tokens;        /* of the text */
    int64_t n_predictions; /* scored */
    fl_eval_model model, baseline;
    const char *isa; /* level in use */
    char device[96]; /* as in fl_engine_info */
    int n_threads;
    double elapsed_s; /* of the forward passes and scores */
} fl_eval_result;
/* Perplexity by "windows": the file's bytes tokenised once, no BOS, non-overlapping windows of
 * seq_len, the tail dropped, exp of the mean over windows of each window's mean cross entropy.
 * With a baseline: mean KL(baseline || model) over the same positions and the share of equal
 * argmax; FL_E_INPUT when the two do not share a vocabulary. */
FL_API fl_status fl_eval_run(fl_eval_result *result, const fl_eval_options *options,
                             fl_err *err);

/* Checks every tensor of a model directory against its config (names, shapes, types, finite
 * values, codes in range). *report_json: {"model":..,"quant_method":..,"tensors":N,"bytes":N,
 * "problems":[text],"unexpected":[name]}; unexpected tensors are ignored by the model and
 * are no problem. With problems the model cannot be used: the status and text of the first one
 * (FL_E_INPUT, or FL_E_UNSUPPORTED), with the report still given. */
FL_API fl_status fl_verify_run(char **report_json, const char *model_dir, fl_err *err);

/* What the model is and how it was made: {"family":..,"n_layers":.., ... "n_params":..,
 * "tensors":N,"tensor_bytes":N,"dtypes":{"BF16":{"tensors":N,"bytes":N}},"quantization":{..}};
 * quantization is config.json's quantization_config (bits per layer, flatten ratios, D_4, D_8)
 * or null. Tensor data is not read. */
FL_API fl_status fl_inspect_run(char **report_json, const char *model_dir, fl_err *err);

typedef struct fl_bench_options {
    const char *isa;
    int n_threads;
    int n_repeats;           /* default 5: medians of interleaved runs */
    const char *filter;      /* run only rows whose kernel name contains this; NULL: all */
    const int (*shapes)[3];  /* M, N, K triples; NULL: the built-in list */
    int n_shapes;
    fl_log log;
} fl_bench_options;
FL_API void fl_bench_options_defaults(fl_bench_options *o);
/* *report_json: {"machine":{...},"rows":[...]}. */
FL_API fl_status fl_bench_kernels_run(char **report_json, const fl_bench_options *options,
                                      fl_err *err);

typedef struct fl_bench_model_options {
    const char *shape;  /* "llama3-8b" (default), "llama3-70b", "llama2-7b", "opt-6.7b",
                           "opt-30b", or a file: the sizes of a config.json (docs/formats.md) */
    int n_layers;       /* 0 (default): the shape's */
    int n_prompt;       /* tokens of a prefill, default 512 */
    int n_predict;      /* tokens of a decode behind it, default 128 */
    int n_sequences;    /* at once, default 1 */
    int n_repeats;      /* default 5: medians of interleaved rounds */
    const char *method; /* "flatquant" (default), "flattenquant", "rtn" */
    int w_bits, a_bits; /* 4 (default), 8; w_bits 16: a 16-bit model */
    int kv_bits;        /* 16 (default), 8, 4 */
    int head_bits;      /* 16 (default), 8 */
    bool alone;         /* default false: a 16-bit model of the same shape runs in turn */
    const char *device; /* as in fl_engine_options */
    const char *isa;
    int n_threads;
    fl_log log;
} fl_bench_model_options;
FL_API void fl_bench_model_options_defaults(fl_bench_model_options *o);
/* Prefill and decode of a model with random weights made in memory, through the forward pass of
 * generation, in turn with a 16-bit model of the same shape. *report_json: {"machine":{...},
 * "shape":{...},"rows":[...]}, a row per model and phase with tokens/s, time per part, memory
 * and floors measured in the same run. FL_E_USAGE, FL_E_INPUT (shape), FL_E_NOMEM. */
FL_API fl_status fl_bench_model_run(char **report_json, const fl_bench_model_options *options,
                                    fl_err *err);

/* What there is to compute on: {"devices":[{"device":"cpu","name":..,"isa":["avx2",..],
 * "highest_isa":..,"cores":N,"threads":N,"memory_bytes":N,"memory_available_bytes":N}, and for
 * each GPU {"device":"cuda:N","name":..,"detail":..,"multiprocessors":N,"memory_bytes":N,
 * "memory_available_bytes":N}], "no_gpu": null, or why there is none}. */
FL_API fl_status fl_devices_run(char **report_json, fl_err *err);

#ifdef __cplusplus
}
#endif

#endif
