/* bench_shape.c - shapes of models: the sizes of a config.json, built in or from a file.
 * SPDX-License-Identifier: MIT */
#include "api/bench_model.h"
#include "base/file.h"

#include <string.h>

#define MAX_SHAPE_BYTES ((size_t)1 << 20)

static const struct {
    const char *name, *config;
} shapes[] = {
    {"llama3-8b",
     "{\"model_type\": \"llama\", \"vocab_size\": 128256, \"hidden_size\": 4096,"
     " \"intermediate_size\": 14336, \"num_hidden_layers\": 32, \"num_attention_heads\": 32,"
     " \"num_key_value_heads\": 8, \"max_position_embeddings\": 8192, \"rms_norm_eps\": 1e-5,"
     " \"rope_theta\": 500000}"},
    {"llama2-7b",
     "{\"model_type\": \"llama\", \"vocab_size\": 32000, \"hidden_size\": 4096,"
     " \"intermediate_size\": 11008, \"num_hidden_layers\": 32, \"num_attention_heads\": 32,"
     " \"max_position_embeddings\": 4096, \"rms_norm_eps\": 1e-5}"},
    {"opt-6.7b",
     "{\"model_type\": \"opt\", \"vocab_size\": 50272, \"hidden_size\": 4096,"
     " \"ffn_dim\": 16384, \"num_hidden_layers\": 32, \"num_attention_heads\": 32,"
     " \"max_position_embeddings\": 2048}"},
    {"opt-30b",
     "{\"model_type\": \"opt\", \"vocab_size\": 50272, \"hidden_size\": 7168,"
     " \"ffn_dim\": 28672, \"num_hidden_layers\": 48, \"num_attention_heads\": 56,"
     " \"max_position_embeddings\": 2048}"},
    {"llama3-70b",
     "{\"model_type\": \"llama\", \"vocab_size\": 128256, \"hidden_size\": 8192,"
     " \"intermediate_size\": 28672, \"num_hidden_layers\": 80, \"num_attention_heads\": 64,"
     " \"num_key_value_heads\": 8, \"max_position_embeddings\": 8192, \"rms_norm_eps\": 1e-5,"
     " \"rope_theta\": 500000}"},
};

static fl_status shape_json(json_t **out, const char *shape, fl_err *err)
{
    *out = NULL;
    for (size_t i = 0; i < FL_COUNT(shapes); i++)
        if (strcmp(shape, shapes[i].name) == 0)
            return fl__json_parse(out, shapes[i].config, strlen(shapes[i].config), shape, err);
    if (fl__file_exists(shape)) return fl__json_load(out, shape, MAX_SHAPE_BYTES, err);
    return fl__fail(err, FL_E_INPUT,
                    "cannot read shape: %s: no such shape and no such file; use llama3-8b, "
                    "llama3-70b, llama2-7b, opt-6.7b, opt-30b or a file with the sizes of a "
                    "config.json",
                    shape);
}

fl_status fl__bench_shape(fl_model_config *cfg, const char *shape, fl_err *err)
{
    json_t *root;
    fl_status st = shape_json(&root, shape, err);
    if (!st) st = fl__model_config_parse(cfg, root, shape, err);
    if (!st) fl__model_config_fini(cfg); /* the quantisation of the file's model, if any */
    json_decref(root);
    return st;
}
