/* test_config.c - config.json: defaults, every supported variation, and what is refused with
 * the field that is to blame.
 * SPDX-License-Identifier: MIT */
#include "base/file.h"
#include "base/mem.h"
#include "model/config.h"
#include "support/fl_test.h"

#include <stdio.h>
#include <string.h>

#define LLAMA                                                                                  \
    "\"model_type\":\"llama\",\"vocab_size\":100,\"hidden_size\":32,\"num_hidden_layers\":2,"  \
    "\"num_attention_heads\":4,\"intermediate_size\":48"
#define OPT                                                                                    \
    "\"model_type\":\"opt\",\"vocab_size\":100,\"hidden_size\":32,\"num_hidden_layers\":2,"    \
    "\"num_attention_heads\":4,\"ffn_dim\":128"

static fl_status parse(fl_model_config *cfg, const char *text, fl_err *err)
{
    json_t *root;
    err->text[0] = '\0';
    assert_int_equal(fl__json_parse(&root, text, strlen(text), "c.json", err), FL_OK);
    const fl_status st = fl__model_config_parse(cfg, root, "c.json", err);
    json_decref(root);
    return st;
}

static fl_model_config parsed(const char *text)
{
    fl_model_config cfg;
    fl_err err;
    if (parse(&cfg, text, &err) != FL_OK) fail_msg("%s: %s", text, err.text);
    return cfg;
}

static void llama_defaults(void **state)
{
    (void)state;
    const fl_model_config cfg = parsed("{" LLAMA "}");
    assert_int_equal(cfg.family, FL_FAMILY_LLAMA);
    assert_int_equal(cfg.n_layers, 2);
    assert_int_equal(cfg.hidden_size, 32);
    assert_int_equal(cfg.embed_size, 32);
    assert_int_equal(cfg.n_heads, 4);
    assert_int_equal(cfg.n_kv_heads, 4);
    assert_int_equal(cfg.head_dim, 8);
    assert_int_equal(cfg.ffn_size, 48);
    assert_int_equal(cfg.vocab_size, 100);
    assert_int_equal(cfg.n_positions, 2048);
    assert_true(cfg.norm_eps == 1e-6);
    assert_false(cfg.tied_head || cfg.attn_bias || cfg.mlp_bias);
    assert_true(cfg.pre_norm && cfg.final_norm);
    assert_int_equal(cfg.rope.kind, FL_ROPE_DEFAULT);
    assert_true(cfg.rope.theta == 10000 && cfg.rope.factor == 1);
    assert_int_equal(cfg.bos_id, -1);
    assert_int_equal(cfg.n_eos, 0);
    assert_null(cfg.quant);
}

static void llama_fields(void **state)
{
    (void)state;
    const fl_model_config cfg = parsed(
        "{" LLAMA ",\"architectures\":[\"LlamaForCausalLM\"],\"num_key_value_heads\":2,"
        "\"head_dim\":16,\"hidden_act\":\"silu\",\"max_position_embeddings\":4096,"
        "\"rms_norm_eps\":1e-5,\"tie_word_embeddings\":true,\"attention_bias\":true,"
        "\"mlp_bias\":true,\"bos_token_id\":1,\"eos_token_id\":[2,7],\"rope_theta\":500000.0,"
        "\"rope_scaling\":null,\"sliding_window\":4096,\"use_sliding_window\":false,"
        "\"layer_types\":[\"full_attention\",\"full_attention\"],\"pretraining_tp\":2,"
        "\"num_experts\":0,\"partial_rotary_factor\":1.0,\"head_dim_of_nobody\":3}");
    assert_int_equal(cfg.n_kv_heads, 2);
    assert_int_equal(cfg.head_dim, 16);
    assert_int_equal(cfg.n_positions, 4096);
    assert_true(cfg.norm_eps == 1e-5);
    assert_true(cfg.tied_head && cfg.attn_bias && cfg.mlp_bias);
    assert_int_equal(cfg.bos_id, 1);
    assert_int_equal(cfg.n_eos, 2);
    assert_int_equal(cfg.eos_ids[0], 2);
    assert_int_equal(cfg.eos_ids[1], 7);
    assert_true(cfg.rope.theta == 500000);
}

static void rope_variations(void **state)
{
    (void)state;
    fl_model_config cfg = parsed("{" LLAMA ",\"rope_theta\":5,\"rope_parameters\":"
                                 "{\"rope_theta\":2e4,\"rope_type\":\"default\"}}");
    assert_int_equal(cfg.rope.kind, FL_ROPE_DEFAULT);
    assert_true(cfg.rope.theta == 2e4);
    cfg = parsed("{" LLAMA ",\"rope_parameters\":{\"rope_theta\":2e4}}");
    assert_int_equal(cfg.rope.kind, FL_ROPE_DEFAULT);
    cfg = parsed("{" LLAMA ",\"rope_theta\":5e3,\"rope_scaling\":{\"type\":\"linear\","
                 "\"factor\":4}}");
    assert_int_equal(cfg.rope.kind, FL_ROPE_LINEAR);
    assert_true(cfg.rope.factor == 4 && cfg.rope.theta == 5e3);
    cfg = parsed("{" LLAMA ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8.0,"
                 "\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,"
                 "\"original_max_position_embeddings\":8192}}");
    assert_int_equal(cfg.rope.kind, FL_ROPE_LLAMA3);
    assert_true(cfg.rope.factor == 8 && cfg.rope.low_freq_factor == 1 &&
                cfg.rope.high_freq_factor == 4 && cfg.rope.original_positions == 8192);
    cfg = parsed("{" LLAMA ",\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":2},"
                 "\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":2}}");
    assert_int_equal(cfg.rope.kind, FL_ROPE_LINEAR);
}

static void opt_defaults(void **state)
{
    (void)state;
    const fl_model_config cfg = parsed("{" OPT "}");
    assert_int_equal(cfg.family, FL_FAMILY_OPT);
    assert_int_equal(cfg.n_kv_heads, 4);
    assert_int_equal(cfg.head_dim, 8);
    assert_int_equal(cfg.ffn_size, 128);
    assert_int_equal(cfg.embed_size, 32);
    assert_int_equal(cfg.n_positions, 2048);
    assert_true(cfg.norm_eps == 1e-5);
    assert_true(cfg.tied_head && cfg.attn_bias && cfg.mlp_bias && cfg.pre_norm &&
                cfg.final_norm);
    assert_int_equal(cfg.rope.kind, FL_ROPE_NONE);
}

static void opt_350m_and_others(void **state)
{
    (void)state;
    fl_model_config cfg = parsed("{" OPT ",\"do_layer_norm_before\":false,"
                                 "\"word_embed_proj_dim\":16,\"architectures\":"
                                 "[\"OPTForCausalLM\"],\"activation_function\":\"relu\"}");
    assert_int_equal(cfg.embed_size, 16);
    assert_false(cfg.pre_norm);
    assert_false(cfg.final_norm);
    cfg = parsed("{" OPT ",\"_remove_final_layer_norm\":true,\"enable_bias\":false,"
                 "\"tie_word_embeddings\":false,\"max_position_embeddings\":64,"
                 "\"layer_norm_elementwise_affine\":true}");
    assert_true(cfg.pre_norm);
    assert_false(cfg.final_norm || cfg.attn_bias || cfg.mlp_bias || cfg.tied_head);
    assert_int_equal(cfg.n_positions, 64);
}

static void our_quantised_models_keep_their_section(void **state)
{
    (void)state;
    fl_model_config cfg = parsed("{" LLAMA ",\"quantization_config\":{\"quant_method\":"
                                 "\"flatiron\",\"version\":1,\"method\":\"rtn\"}}");
    assert_non_null(cfg.quant);
    assert_string_equal(json_string_value(json_object_get(cfg.quant, "method")), "rtn");
    fl__model_config_fini(&cfg);
    assert_null(cfg.quant);
    fl__model_config_fini(&cfg);
}

/* ---- refused ------------------------------------------------------------------------ */

static const struct {
    const char *text, *want; /* behind "c.json: " */
} unsupported[] = {
    {"{\"model_type\":\"mistral\"}", "model_type is \"mistral\"; supported: llama, opt"},
    {"{\"model_type\":3}", "model_type is 3; supported: llama, opt"},
    {"{" LLAMA ",\"hidden_act\":\"gelu\"}", "hidden_act is \"gelu\"; supported: silu"},
    {"{" LLAMA ",\"hidden_act\":7}", "hidden_act is 7; supported: silu"},
    {"{" LLAMA ",\"architectures\":[\"LlamaForSequenceClassification\"]}",
     "architectures is \"LlamaForSequenceClassification\"; supported: LlamaForCausalLM"},
    {"{" LLAMA ",\"architectures\":[\"A\",\"B\"]}", "architectures is an array; supported"},
    {"{" LLAMA ",\"architectures\":\"LlamaForCausalLM\"}", "architectures is \"Llama"},
    {"{" LLAMA ",\"sliding_window\":512}", "sliding_window is 512; supported"},
    {"{" LLAMA ",\"use_sliding_window\":true}", "use_sliding_window is true; supported"},
    {"{" LLAMA ",\"layer_types\":[\"full_attention\",\"sliding_attention\"]}",
     "layer_types is \"sliding_attention\"; supported: full_attention"},
    {"{" LLAMA ",\"num_local_experts\":8}", "num_local_experts is 8; supported"},
    {"{" LLAMA ",\"final_logit_softcapping\":30.5}", "final_logit_softcapping is 30.5;"},
    {"{" LLAMA ",\"partial_rotary_factor\":0.5}", "partial_rotary_factor is 0.5; supported: 1"},
    {"{" LLAMA ",\"residual_multiplier\":\"x\"}", "residual_multiplier is \"x\"; supported: 1"},
    {"{" LLAMA ",\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":2}}",
     "rope_scaling: rope_type is \"yarn\"; supported: default, linear, llama3"},
    {"{" LLAMA ",\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2}}",
     "rope_scaling: type is \"dynamic\"; supported"},
    {"{" LLAMA ",\"rope_parameters\":{\"rope_type\":\"longrope\"}}",
     "rope_parameters: rope_type is \"longrope\"; supported"},
    {"{" LLAMA ",\"rope_parameters\":{\"partial_rotary_factor\":0.25}}",
     "rope_parameters: partial_rotary_factor is 0.25; supported: 1"},
    {"{" LLAMA ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":2},\"rope_parameters\":{}}",
     "rope_scaling is an object; supported: either it or rope_parameters"},
    {"{" LLAMA ",\"eos_token_id\":[1,2,3,4,5,6,7,8,9]}", "eos_token_id is an array; supported"},
    {"{" LLAMA ",\"quantization_config\":{\"quant_method\":\"gptq\",\"bits\":4}}",
     "quantization_config: quant_method is \"gptq\"; supported: flatiron"},
    {"{" LLAMA ",\"quantization_config\":{\"quant_method\":\"flatiron\",\"version\":2}}",
     "quantization_config: version is 2; supported: 1"},
    {"{" OPT ",\"activation_function\":\"gelu\"}",
     "activation_function is \"gelu\"; supported: "
     "relu"},
    {"{" OPT ",\"layer_norm_elementwise_affine\":false}",
     "layer_norm_elementwise_affine is false; supported: true"},
    {"{" OPT ",\"architectures\":[\"OPTModel\"]}", "architectures is \"OPTModel\"; supported"},
};

static const struct {
    const char *text, *want;
} broken[] = {
    {"[]", "it is no JSON object"},
    {"{}", "model_type is not there"},
    {"{\"model_type\":\"llama\"}", "vocab_size is not there"},
    {"{\"model_type\":\"llama\",\"vocab_size\":\"100\"}",
     "vocab_size is \"100\", wanted an integer"},
    {"{\"model_type\":\"llama\",\"vocab_size\":0}",
     "vocab_size is 0, wanted an integer from 1 to "
     "1048576"},
    {"{\"model_type\":\"llama\",\"vocab_size\":1048577}", "vocab_size is 1048577, wanted"},
    {"{\"model_type\":\"llama\",\"vocab_size\":1e30}", "vocab_size is 1e30, wanted an integer"},
    {"{\"model_type\":\"llama\",\"vocab_size\":9}", "hidden_size is not there"},
    {"{\"model_type\":\"llama\",\"vocab_size\":9,\"hidden_size\":-8}", "hidden_size is -8"},
    {"{\"model_type\":\"llama\",\"vocab_size\":9,\"hidden_size\":8}",
     "num_hidden_layers is not"},
    {"{\"model_type\":\"llama\",\"vocab_size\":9,\"hidden_size\":8,\"num_hidden_layers\":4097}",
     "num_hidden_layers is 4097, wanted an integer from 1 to 4096"},
    {"{\"model_type\":\"llama\",\"vocab_size\":9,\"hidden_size\":8,\"num_hidden_layers\":1}",
     "num_attention_heads is not there"},
    {"{\"model_type\":\"llama\",\"vocab_size\":9,\"hidden_size\":8,\"num_hidden_layers\":1,"
     "\"num_attention_heads\":2}",
     "intermediate_size is not there"},
    {"{\"model_type\":\"llama\",\"vocab_size\":9,\"hidden_size\":9,\"num_hidden_layers\":1,"
     "\"num_attention_heads\":2,\"intermediate_size\":3}",
     "hidden_size is no multiple of num_attention_heads"},
    {"{\"model_type\":\"llama\",\"vocab_size\":9,\"hidden_size\":6,\"num_hidden_layers\":1,"
     "\"num_attention_heads\":2,\"intermediate_size\":3}",
     "head_dim is odd"},
    {"{\"model_type\":\"opt\",\"vocab_size\":9,\"hidden_size\":9,\"num_hidden_layers\":1,"
     "\"num_attention_heads\":2,\"ffn_dim\":3}",
     "hidden_size is no multiple of num_attention_heads"},
    {"{\"model_type\":\"opt\",\"vocab_size\":9,\"hidden_size\":8,\"num_hidden_layers\":1,"
     "\"num_attention_heads\":2}",
     "ffn_dim is not there"},
    {"{" LLAMA ",\"num_key_value_heads\":3}", "num_attention_heads is no multiple of num_key"},
    {"{" LLAMA ",\"num_key_value_heads\":8}", "num_attention_heads is no multiple of num_key"},
    {"{" LLAMA ",\"num_key_value_heads\":0}", "num_key_value_heads is 0, wanted"},
    {"{" LLAMA ",\"head_dim\":7}", "head_dim is odd"},
    {"{" LLAMA ",\"head_dim\":0}", "head_dim is 0, wanted an integer from 1 to 512"},
    {"{" LLAMA ",\"head_dim\":514}", "head_dim is 514, wanted an integer from 1 to 512"},
    {"{" LLAMA ",\"head_dim\":8.0}", "head_dim is 8.0, wanted an integer"},
    {"{\"model_type\":\"llama\",\"vocab_size\":9,\"hidden_size\":8,\"num_hidden_layers\":1,"
     "\"num_attention_heads\":16384,\"intermediate_size\":3,\"head_dim\":512}",
     "head_dim times num_attention_heads is above 1048576"},
    {"{" LLAMA ",\"max_position_embeddings\":0}", "max_position_embeddings is 0, wanted"},
    {"{" LLAMA ",\"rms_norm_eps\":0}", "rms_norm_eps is 0, wanted a number above 0"},
    {"{" LLAMA ",\"rms_norm_eps\":\"1e-5\"}", "rms_norm_eps is \"1e-5\", wanted a number"},
    {"{" LLAMA ",\"tie_word_embeddings\":1}", "tie_word_embeddings is 1, wanted true or false"},
    {"{" LLAMA ",\"attention_bias\":\"no\"}", "attention_bias is \"no\", wanted true or false"},
    {"{" LLAMA ",\"mlp_bias\":[]}", "mlp_bias is an array, wanted true or false"},
    {"{" LLAMA ",\"rope_theta\":-1}", "rope_theta is -1, wanted a number above 0"},
    {"{" LLAMA ",\"rope_scaling\":\"linear\"}", "rope_scaling is no object"},
    {"{" LLAMA ",\"rope_scaling\":{\"factor\":2}}",
     "rope_scaling: rope_type is not there, but"},
    {"{" LLAMA ",\"rope_scaling\":{\"type\":\"linear\"}}", "rope_scaling: factor is not there"},
    {"{" LLAMA ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":0.5}}",
     "rope_scaling: factor is 0.5, wanted a number of at least 1"},
    {"{" LLAMA ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8}}",
     "rope_scaling: low_freq_factor is not there"},
    {"{" LLAMA ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":1,"
     "\"high_freq_factor\":4}}",
     "rope_scaling: original_max_position_embeddings is not there"},
    {"{" LLAMA ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,"
     "\"high_freq_factor\":4,\"original_max_position_embeddings\":8}}",
     "rope_scaling: high_freq_factor is not above low_freq_factor"},
    {"{" LLAMA ",\"bos_token_id\":\"<s>\"}", "bos_token_id is \"<s>\", wanted an integer"},
    {"{" LLAMA ",\"eos_token_id\":-3}",
     "eos_token_id is neither a token id nor a list of them"},
    {"{" LLAMA ",\"eos_token_id\":[1,\"x\"]}", "eos_token_id is neither a token id nor a list"},
    {"{" LLAMA ",\"quantization_config\":[]}", "quantization_config is no object"},
    {"{" LLAMA ",\"quantization_config\":{}}",
     "quantization_config: quant_method is not there"},
    {"{" LLAMA ",\"quantization_config\":{\"quant_method\":\"flatiron\"}}",
     "quantization_config: version is not there"},
    {"{" OPT ",\"word_embed_proj_dim\":0}", "word_embed_proj_dim is 0, wanted"},
    {"{" OPT ",\"do_layer_norm_before\":\"yes\"}",
     "do_layer_norm_before is \"yes\", wanted true"},
    {"{" OPT ",\"enable_bias\":0}", "enable_bias is 0, wanted true or false"},
};

static void assert_refused(const char *text, fl_status want_status, const char *want)
{
    fl_model_config cfg;
    fl_err err;
    char place[256];
    (void)snprintf(place, sizeof place, ": c.json: %s", want);
    const fl_status st = parse(&cfg, text, &err);
    if (!strstr(err.text, place)) fail_msg("wanted '%s', got '%s'", place, err.text);
    assert_int_equal(st, want_status);
    assert_non_null(strstr(err.text, "; "));
    assert_null(cfg.quant);
}

static void unsupported_fields_are_named(void **state)
{
    (void)state;
    for (size_t i = 0; i < FL_COUNT(unsupported); i++)
        assert_refused(unsupported[i].text, FL_E_UNSUPPORTED, unsupported[i].want);
}

static void broken_fields_are_named(void **state)
{
    (void)state;
    for (size_t i = 0; i < FL_COUNT(broken); i++)
        assert_refused(broken[i].text, FL_E_INPUT, broken[i].want);
}

/* ---- files -------------------------------------------------------------------------- */

static void put(const char *name, const char *text)
{
    assert_int_equal(fl__file_write(fl_test_path(name), text, strlen(text), NULL), FL_OK);
}

static void generation_config_has_the_last_word_on_end_tokens(void **state)
{
    (void)state;
    fl_model_config cfg;
    fl_err err;
    put("config.json", "{" LLAMA ",\"eos_token_id\":2}");
    assert_int_equal(fl__model_config_load(&cfg, fl_test_dir(), &err), FL_OK);
    assert_true(cfg.n_eos == 1 && cfg.eos_ids[0] == 2);
    put("generation_config.json", "{\"eos_token_id\":[5,6,7]}");
    assert_int_equal(fl__model_config_load(&cfg, fl_test_dir(), &err), FL_OK);
    assert_true(cfg.n_eos == 3 && cfg.eos_ids[0] == 5 && cfg.eos_ids[2] == 7);
    put("generation_config.json", "{\"temperature\":0.6,\"eos_token_id\":null}");
    assert_int_equal(fl__model_config_load(&cfg, fl_test_dir(), &err), FL_OK);
    assert_true(cfg.n_eos == 1 && cfg.eos_ids[0] == 2);
    put("generation_config.json", "{\"eos_token_id\":\"</s>\"}");
    assert_int_equal(fl__model_config_load(&cfg, fl_test_dir(), &err), FL_E_INPUT);
    assert_non_null(strstr(err.text, "generation_config.json: eos_token_id is neither"));
    put("generation_config.json", "[]");
    assert_int_equal(fl__model_config_load(&cfg, fl_test_dir(), &err), FL_E_INPUT);
    assert_non_null(strstr(err.text, "generation_config.json: it is no JSON object"));
}

static void load_names_the_file(void **state)
{
    (void)state;
    fl_model_config cfg;
    fl_err err;
    const char *path = fl_test_path("config.json");
    assert_int_equal(fl__model_config_load(&cfg, fl_test_dir(), &err), FL_E_INPUT);
    assert_non_null(strstr(err.text, path));
    put("config.json", "{\"model_type\"");
    assert_int_equal(fl__model_config_load(&cfg, fl_test_dir(), &err), FL_E_INPUT);
    assert_non_null(strstr(err.text, path));
    put("config.json", "{\"model_type\":\"gpt2\"}");
    assert_int_equal(fl__model_config_load(&cfg, fl_test_dir(), &err), FL_E_UNSUPPORTED);
    assert_non_null(strstr(err.text, path));
}

static void out_of_memory_leaks_nothing(void **state)
{
    (void)state;
    put("config.json",
        "{" LLAMA ",\"x\":1000000000000000000000000000000,"
        "\"quantization_config\":{\"quant_method\":\"flatiron\",\"version\":1}}");
    put("generation_config.json", "{\"eos_token_id\":[5,6,7]}");
    const size_t before = fl__mem_get().now_bytes;
    fl_status st = FL_E_NOMEM;
    int n = 0;
    while (st) {
        fl_model_config cfg;
        fl_err err;
        assert_true(n < 50);
        fl__mem_fail_after((uint64_t)++n);
        st = fl__model_config_load(&cfg, fl_test_dir(), &err);
        fl__mem_fail_after(0);
        assert_true(st == FL_OK || st == FL_E_NOMEM);
        fl__model_config_fini(&cfg);
        assert_int_equal(fl__mem_get().now_bytes, before);
    }
    assert_true(n > 4);
}

static void shared_models_are_supported(void **state)
{
    (void)state;
    static const struct {
        const char *dir;
        int n_layers, hidden_size, n_heads, n_kv_heads, head_dim, ffn_size, vocab_size;
        fl_family family;
    } models[] = {
        {"models/llama-2m", 4, 160, 5, 5, 32, 448, 8192, FL_FAMILY_LLAMA},
        {"models/llama-28m", 8, 512, 8, 4, 64, 1408, 8192, FL_FAMILY_LLAMA},
        {"models/opt-2m", 4, 160, 5, 5, 32, 640, 8000, FL_FAMILY_OPT},
        {"models/opt-27m", 7, 512, 8, 8, 64, 2048, 8192, FL_FAMILY_OPT},
    };
    for (size_t i = 0; i < FL_COUNT(models); i++) {
        fl_model_config cfg;
        fl_err err;
        const char *dir = fl_test_shared(models[i].dir);
        assert_int_equal(fl__model_config_load(&cfg, dir, &err), FL_OK);
        assert_int_equal(cfg.family, models[i].family);
        assert_int_equal(cfg.n_layers, models[i].n_layers);
        assert_int_equal(cfg.hidden_size, models[i].hidden_size);
        assert_int_equal(cfg.n_heads, models[i].n_heads);
        assert_int_equal(cfg.n_kv_heads, models[i].n_kv_heads);
        assert_int_equal(cfg.head_dim, models[i].head_dim);
        assert_int_equal(cfg.ffn_size, models[i].ffn_size);
        assert_int_equal(cfg.vocab_size, models[i].vocab_size);
        assert_int_equal(cfg.n_positions, 1024);
        assert_true(cfg.tied_head && cfg.norm_eps == 1e-5);
        assert_true(cfg.n_eos == 1 && cfg.eos_ids[0] == 2 && cfg.bos_id == 0);
        fl__model_config_fini(&cfg);
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(llama_defaults),
    cmocka_unit_test(llama_fields),
    cmocka_unit_test(rope_variations),
    cmocka_unit_test(opt_defaults),
    cmocka_unit_test(opt_350m_and_others),
    cmocka_unit_test(our_quantised_models_keep_their_section),
    cmocka_unit_test(unsupported_fields_are_named),
    cmocka_unit_test(broken_fields_are_named),
    cmocka_unit_test(generation_config_has_the_last_word_on_end_tokens),
    cmocka_unit_test(load_names_the_file),
    cmocka_unit_test(out_of_memory_leaks_nothing),
    cmocka_unit_test(shared_models_are_supported),
};
FL_TEST_MAIN(tests)
