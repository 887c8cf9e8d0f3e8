/* defaults.c - defaults of the public option structs, exit codes, freeing what the library
 * gave.
 * SPDX-License-Identifier: MIT */
#include "base/mem.h"
#include "base/status.h"

const char *fl_version(void)
{
    return FL_VERSION;
}

int fl_exit_code(fl_status status)
{
    switch (status) {
    case FL_OK:
        return 0;
    case FL_E_USAGE:
        return 2;
    case FL_E_INPUT:
        return 3;
    case FL_E_NOMEM:
    case FL_E_NOSPACE:
        return 4;
    case FL_E_GATE:
        return 5;
    case FL_E_UNSUPPORTED:
        return 6;
    case FL_E_INTERRUPTED:
        return 130;
    case FL_E_FAIL:
    case FL_E_IO:
        break;
    }
    return 1;
}

void fl_ids_free(int32_t **ids)
{
    fl__free(ids);
}

void fl_string_free(char **s)
{
    fl__free(s);
}

void fl_engine_options_defaults(fl_engine_options *o)
{
    *o = (fl_engine_options){.isa = "native"};
}

void fl_session_options_defaults(fl_session_options *o)
{
    *o = (fl_session_options){.n_positions = 0};
}

void fl_sample_options_defaults(fl_sample_options *o)
{
    *o = (fl_sample_options){.temperature = 0.8f,
                             .top_k = 40,
                             .top_p = 0.95f,
                             .min_p = 0.05f,
                             .repeat_penalty = 1.0f};
}

void fl_generate_options_defaults(fl_generate_options *o)
{
    *o = (fl_generate_options){.n_predict = 128};
    fl_sample_options_defaults(&o->sample);
}

void fl_quantize_options_defaults(fl_quantize_options *o)
{
    *o = (fl_quantize_options){
        .kv_bits = 16,
        .head_bits = 16,
        .w_granularity = "channel",
        .n_samples = 128,
        .smooth = FL_AUTO,
        .suppress = FL_AUTO,
        .flatten = FL_AUTO,
        .unsigned_codes = FL_AUTO,
        .bias_correction = FL_AUTO,
        .alpha = -1,
        .beta = -1,
        .threshold = "mean",
        .flatten_max_ratio = 0.30,
        .int4_ratio = 0.4829,
        .gamma = -1,
        .flatten_weights = FL_AUTO,
        .weight_beta = 1.3,
        .damping = 0.05,
        .gptq_block = 128,
        .act_order = FL_AUTO,
        .compensate = FL_AUTO,
        .learn_scale = FL_AUTO,
        .learn_clip = FL_AUTO,
        .asymmetric = FL_AUTO,
        .quantized_inputs = FL_AUTO,
        .clip_per_linear = FL_AUTO,
        .centre = FL_AUTO,
        .epochs = -1,
        .batch_windows = -1,
        .warmup_steps = -1,
        .lr = -1,
        .min_lr = -1,
        .clip_lr = -1,
        .weight_lr = -1,
        .weight_decay = -1,
        .diag_alpha = -1,
        .train_dtype = "auto",
        .tune_epochs = -1,
        .tune_lr = -1,
        .redo_from = -1,
        .max_ppl_increase = -1,
        .max_kld = -1,
        .isa = "native",
    };
}

void fl_eval_options_defaults(fl_eval_options *o)
{
    *o = (fl_eval_options){.isa = "native"};
}

void fl_bench_options_defaults(fl_bench_options *o)
{
    *o = (fl_bench_options){.isa = "native", .n_repeats = 5};
}

void fl_bench_model_options_defaults(fl_bench_model_options *o)
{
    *o = (fl_bench_model_options){.shape = "llama3-8b",
                                  .n_prompt = 512,
                                  .n_predict = 128,
                                  .n_sequences = 1,
                                  .n_repeats = 5,
                                  .method = "flatquant",
                                  .w_bits = 4,
                                  .a_bits = 4,
                                  .kv_bits = 16,
                                  .head_bits = 16,
                                  .isa = "native"};
}
