/* fuzz_config.c - any bytes as config.json and generation_config.json: refused with a reason,
 * or sizes that fit each other. SPDX-License-Identifier: MIT */
#include "base/mem.h"
#include "model/config.h"

#include <math.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static void check(bool ok)
{
    if (!ok) abort();
}

static bool size_ok(int n)
{
    return n >= 1 && n <= FL_MAX_SIZE;
}

static void check_config(const fl_model_config *c)
{
    check(size_ok(c->n_layers) && size_ok(c->hidden_size) && size_ok(c->n_heads));
    check(size_ok(c->n_kv_heads) && size_ok(c->head_dim) && size_ok(c->ffn_size));
    check(size_ok(c->vocab_size) && size_ok(c->n_positions) && size_ok(c->embed_size));
    check(c->n_heads % c->n_kv_heads == 0 && size_ok(c->n_heads * c->head_dim));
    check(c->norm_eps > 0 && isfinite(c->norm_eps));
    check(c->n_eos >= 0 && c->n_eos <= FL_MAX_EOS_IDS && c->bos_id >= -1);
    if (c->rope.kind == FL_ROPE_NONE) return;
    check(c->head_dim % 2 == 0 && c->rope.theta > 0 && c->rope.factor >= 1);
    if (c->rope.kind == FL_ROPE_LLAMA3)
        check(c->rope.low_freq_factor > 0 && size_ok(c->rope.original_positions) &&
              c->rope.high_freq_factor > c->rope.low_freq_factor);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes)
{
    fl_err err = {""};
    fl_model_config cfg;
    json_t *root;
    const size_t before = fl__mem_get().now_bytes;
    if (fl__json_parse(&root, (const char *)data, n_bytes, "fuzz", &err)) {
        check(!root && err.text[0]);
        return 0;
    }
    if (fl__model_config_parse(&cfg, root, "fuzz", &err)) {
        check(err.text[0]);
    } else {
        check_config(&cfg);
        if (!fl__model_config_parse_generation(&cfg, root, "fuzz", &err)) check_config(&cfg);
    }
    fl__model_config_fini(&cfg);
    json_decref(root);
    check(fl__mem_get().now_bytes == before);
    return 0;
}
