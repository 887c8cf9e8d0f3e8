/* test_bad_inputs.c - broken checkpoints, tokenizers, texts and combinations of options: each
 * ends with its exit code, one line that says what, where, why and what to do, and nothing left
 * behind.
 *
 * Models are copies of the embedded one (and of a quantised form of it) with one thing changed.
 * Usage errors that the command line sees alone are in test_cli_usage.c.
 * SPDX-License-Identifier: MIT */
#include "support/broken_model.h"
#include "support/fl_test.h"
#include "support/quantize_once.h"
#include "support/run_program.h"
#include "support/small_model.h"

#include "base/file.h"
#include "base/mem.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static fl_test_run_result r;

#define QUANTIZE                                                                               \
    "quantize m out --calib text --samples 2 --seq-len 16 --threads 1 --method smoothquant"

static bool exists(const char *name)
{
    return access(fl_test_path(name), F_OK) == 0;
}

static size_t count(const char *text, const char *part)
{
    size_t n = 0;
    for (const char *at = text; (at = strstr(at, part)) != NULL; at++) n++;
    return n;
}

/* Runs and checks exit code, the one line, and that no output is there that was not before. */
static void check_bad(const char *args, int exit_code, const char *part, const char *what)
{
    const bool had_out = exists("out"), had_partial = exists("out.partial");
    fl_test_run_program(&r, args, NULL);
    const size_t n = r.n_err_bytes;
    const bool one_line = n > 0 && r.err[n - 1] == '\n' && count(r.err, "\n") == 1;
    const bool form = strncmp(r.err, "flatiron: ", 10) == 0 && count(r.err, ": ") >= 3 &&
                      strrchr(r.err, ';') != NULL;
    if (r.exit_code != exit_code || !one_line || !form || !strstr(r.err, part))
        fail_msg("%s\n%s: exit code %d, wanted %d and '%s'; stderr: %s", what, args,
                 r.exit_code, exit_code, part, r.err);
    if (exists("out") != had_out || exists("out.partial") != had_partial)
        fail_msg("%s: output left behind", what);
}

static void write_text(void)
{
    char text[1200];
    for (size_t i = 0; i + 1 < sizeof text; i++)
        text[i] = i % 6 == 5 ? ' ' : i % 6 == 2 ? '~' : (char)('a' + i * i * 3 % 26);
    text[sizeof text - 1] = '\0';
    fl_test_write_text(fl_test_path("text"), text);
}

/* A copy of the embedded model, and a calibration text. */
static const char *fresh_model(void)
{
    const char *dir = fl_test_path("m");
    fl_test_link_model(dir, FL_TEST_TINY_LLAMA);
    if (!exists("text")) write_text();
    return dir;
}

typedef struct patched {
    int exit_code;
    const char *patch, *part;
} patched;

#define N_ROWS(rows) (sizeof(rows) / sizeof *(rows))

/* ---- config.json ------------------------------------------------------------------------- */

static const patched config_rows[] = {
    {6, "{\"model_type\": \"gpt2\"}", "supported: llama, opt"},
    {3, "{\"model_type\": null}", "model_type"},
    {6, "{\"architectures\": [\"LlamaForSequenceClassification\"]}", "architectures"},
    {6, "{\"hidden_act\": \"gelu\"}", "hidden_act"},
    {3, "{\"hidden_size\": 0}", "hidden_size"},
    {3, "{\"hidden_size\": null}", "hidden_size is not there"},
    {3, "{\"hidden_size\": \"160\"}", "hidden_size"},
    {3, "{\"hidden_size\": 160.5}", "hidden_size"},
    {3, "{\"hidden_size\": 192}", "its shape is [8192, 160], wanted [8192, 192]"},
    {3, "{\"num_hidden_layers\": 5}", "model.layers.4."},
    {3, "{\"num_hidden_layers\": -1}", "num_hidden_layers"},
    {3, "{\"num_hidden_layers\": 1000000000000}", "num_hidden_layers"},
    {3, "{\"num_attention_heads\": 7}", "num_attention_heads is no multiple"},
    {3, "{\"num_attention_heads\": 10, \"num_key_value_heads\": 10}", "q_proj.weight"},
    {3, "{\"num_key_value_heads\": 2}", "num_key_value_heads"},
    {3, "{\"head_dim\": 33}", "head_dim is odd"},
    {3, "{\"intermediate_size\": 447}", "mlp.gate_proj.weight"},
    {3, "{\"intermediate_size\": 99999999999999999999999}", "intermediate_size"},
    {3, "{\"vocab_size\": 8193}", "embed_tokens.weight"},
    {3, "{\"rms_norm_eps\": -1e-5}", "rms_norm_eps"},
    {3, "{\"rms_norm_eps\": \"small\"}", "rms_norm_eps"},
    {3, "{\"tie_word_embeddings\": false}", "lm_head.weight"},
    {3, "{\"tie_word_embeddings\": \"yes\"}", "tie_word_embeddings"},
    {3, "{\"attention_bias\": true}", "q_proj.bias"},
    {3, "{\"max_position_embeddings\": 0}", "max_position_embeddings"},
    {3, "{\"eos_token_id\": \"</s>\"}", "eos_token_id"},
    {6, "{\"rope_parameters\": {\"rope_type\": \"yarn\", \"factor\": 4}}", "rope_type"},
    {3, "{\"rope_parameters\": {\"rope_type\": \"linear\"}}", "factor is not there"},
    {3, "{\"rope_parameters\": [1, 2]}", "rope_parameters"},
    {3, "{\"rope_parameters\": {\"rope_theta\": 0}}", "rope_theta"},
    {3,
     "{\"rope_parameters\": {\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 4, "
     "\"high_freq_factor\": 1, \"original_max_position_embeddings\": 512}}",
     "high_freq_factor"},
    {6, "{\"sliding_window\": 4096}", "sliding_window"},
    {6, "{\"num_local_experts\": 8}", "num_local_experts"},
    {6, "{\"quantization_config\": {\"quant_method\": \"gptq\", \"bits\": 4}}", "quant_method"},
    {3, "{\"quantization_config\": {}}", "quant_method"},
    {6, "{\"quantization_config\": {\"quant_method\": \"flatiron\", \"version\": 2}}",
     "version"},
    {3,
     "{\"quantization_config\": {\"quant_method\": \"flatiron\", \"version\": 1, \"method\": "
     "\"rtn\"}}",
     "sites"},
};

static void configs_that_do_not_fit(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_ROWS(config_rows); i++) {
        const patched *row = &config_rows[i];
        fl_test_patch_json(fresh_model(), "config.json", row->patch);
        check_bad(i % 2 ? QUANTIZE : "generate m -p a -n 1", row->exit_code, row->part,
                  row->patch);
    }
}

static void files_that_are_no_json(void **state)
{
    (void)state;
    static const char *const files[] = {"config.json", "generation_config.json",
                                        "tokenizer.json"};
    static const char *const texts[] = {"",
                                        "{",
                                        "[]",
                                        "{\"a\": 1, \"a\": 2}",
                                        "{} x",
                                        "\xff\xfe{}",
                                        "{\"a\": \"\\ud800\"}",
                                        "\"config\""};
    char deep[20001];
    memset(deep, '[', sizeof deep - 1);
    deep[sizeof deep - 1] = '\0';
    for (size_t f = 0; f < N_ROWS(files); f++) {
        for (size_t i = 0; i < N_ROWS(texts); i++) {
            fl_test_put(fresh_model(), files[f], texts[i], strlen(texts[i]));
            check_bad(QUANTIZE, 3, files[f], texts[i]);
        }
        fl_test_put(fresh_model(), files[f], deep, strlen(deep));
        check_bad(QUANTIZE, 3, files[f], "deep nesting");
    }
    fl_test_drop(fresh_model(), "config.json");
    check_bad(QUANTIZE, 3, "config.json", "no config.json");
    fl_test_drop(fresh_model(), "config.json");
    assert_int_equal(mkdir(fl_test_path("m/config.json"), 0700), 0);
    check_bad(QUANTIZE, 3, "config.json", "config.json is a directory");
    assert_int_equal(rmdir(fl_test_path("m/config.json")), 0);
}

/* ---- weights ----------------------------------------------------------------------------- */

#define GATE "\"model.layers.1.mlp.gate_proj.weight\""
#define NORM "\"model.norm.weight\""

static const patched header_rows[] = {
    {3, "{" GATE ": {\"dtype\": \"F64\"}}", "layers.1.mlp.gate_proj.weight"},
    {3, "{" GATE ": {\"dtype\": \"U16\"}}", "its dtype is U16"},
    {3, "{" GATE ": {\"dtype\": \"Q4_0\"}}", "Q4_0"},
    {3, "{" GATE ": {\"dtype\": 16}}", "dtype"},
    {3, "{" GATE ": {\"shape\": [160, 448]}}", "its shape is [160, 448], wanted [448, 160]"},
    {3, "{" GATE ": {\"shape\": [71680]}}", "its shape is [71680]"},
    {3, "{" GATE ": {\"shape\": [448, -160]}}", "shape"},
    {3, "{" GATE ": {\"shape\": [4611686018427387904, 4]}}", "gate_proj"},
    {3, "{" GATE ": {\"shape\": [1,1,1,1,1,1,448,160,1]}}", "gate_proj"},
    {3, "{" GATE ": {\"shape\": \"448x160\"}}", "shape"},
    {3, "{" GATE ": {\"data_offsets\": [0, 143360]}}", "gate_proj"},
    {3, "{" GATE ": {\"data_offsets\": [143360, 0]}}", "gate_proj"},
    {3, "{" GATE ": {\"data_offsets\": [0, 9223372036854775807]}}", "gate_proj"},
    {3, "{" GATE ": {\"data_offsets\": [-2, 143358]}}", "gate_proj"},
    {3, "{" GATE ": {\"data_offsets\": [1]}}", "gate_proj"},
    {3, "{" GATE ": []}", "gate_proj"},
    {3, "{" NORM ": null}", "model.safetensors"},
    {3, "{\"__metadata__\": {\"format\": 1}}", "__metadata__"},
    {3, "{\"\": {\"dtype\": \"U8\", \"shape\": [0], \"data_offsets\": [0, 0]}}", "name"},
    {3, "{\"a\\u0001b\": {\"dtype\": \"U8\", \"shape\": [0], \"data_offsets\": [0, 0]}}",
     "name"},
};

static void headers_that_lie(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_ROWS(header_rows); i++) {
        const patched *row = &header_rows[i];
        fl_test_patch_header(fresh_model(), "model.safetensors", row->patch);
        check_bad(i % 2 ? QUANTIZE : "generate m -p a -n 1", row->exit_code, row->part,
                  row->patch);
        fl_test_run_program(&r, "verify m", NULL);
        assert_int_equal(r.exit_code, 3);
    }
}

/* The first n_bytes of the weights, then `extra` zeros. */
static void cut_weights(size_t n_bytes, size_t extra)
{
    fl_file_map map;
    assert_int_equal(fl__file_map(&map, FL_TEST_TINY_LLAMA "/model.safetensors", NULL), FL_OK);
    if (n_bytes > map.n_bytes) n_bytes = map.n_bytes;
    char *data = fl__calloc(n_bytes + extra, 1);
    memcpy(data, map.data, n_bytes);
    fl_test_put(fresh_model(), "model.safetensors", data, n_bytes + extra);
    fl__free(&data);
    fl__file_unmap(&map);
}

static void weights_that_are_cut_or_garbage(void **state)
{
    (void)state;
    static const size_t cuts[][2] = {{0, 0},       {7, 0},        {8, 0},    {100, 0},
                                     {2000000, 0}, {SIZE_MAX, 8}, {0, 4096}, {4, 100}};
    static const uint64_t lengths[] = {0, 1, UINT64_MAX, UINT64_MAX / 2, 100000001, 5000000};
    for (size_t i = 0; i < N_ROWS(cuts); i++) {
        cut_weights(cuts[i][0], cuts[i][1]);
        check_bad(QUANTIZE, 3, "model.safetensors", "cut weights");
    }
    for (size_t i = 0; i < N_ROWS(lengths); i++) {
        char data[64] = "????????{}      ";
        memcpy(data, &lengths[i], sizeof lengths[i]);
        fl_test_put(fresh_model(), "model.safetensors", data, sizeof data);
        check_bad(QUANTIZE, 3, "model.safetensors", "length of the header");
    }
    fl_test_drop(fresh_model(), "model.safetensors");
    check_bad(QUANTIZE, 3, "no weights", "no weights");
    fl_test_drop(fresh_model(), "model.safetensors");
    assert_int_equal(mkdir(fl_test_path("m/model.safetensors"), 0700), 0);
    check_bad(QUANTIZE, 3, "model.safetensors", "weights that are a directory");
    assert_int_equal(rmdir(fl_test_path("m/model.safetensors")), 0);
}

static void numbers_that_are_none(void **state)
{
    (void)state;
    static const char *const tensors[] = {"model.embed_tokens.weight", "model.norm.weight",
                                          "model.layers.0.input_layernorm.weight",
                                          "model.layers.2.self_attn.v_proj.weight",
                                          "model.layers.3.mlp.down_proj.weight"};
    static const uint16_t bf16[] = {0x7fc0, 0x7f80, 0xff80, 0xffff};
    for (size_t i = 0; i < N_ROWS(tensors); i++) {
        const char *dir = fresh_model();
        fl_test_poke(dir, tensors[i], 6, &bf16[i % 4], 2);
        check_bad(QUANTIZE, 3, tensors[i], "not a number");
        assert_non_null(strstr(r.err, "element 3 is "));
        fl_test_run_program(&r, "verify m", NULL);
        assert_int_equal(r.exit_code, 3);
        assert_non_null(strstr(r.out, tensors[i]));
    }
}

/* ---- shards ------------------------------------------------------------------------------ */

static void put_index(const char *text)
{
    const char *dir = fresh_model();
    char *from = fl__path_join(FL_TEST_TINY_LLAMA, "model.safetensors");
    fl_test_drop(dir, "model.safetensors");
    assert_int_equal(symlink(from, fl_test_path("m/a.safetensors")), 0);
    assert_int_equal(symlink(from, fl_test_path("m/b.safetensors")), 0);
    fl_test_put(dir, "model.safetensors.index.json", text, strlen(text));
    fl__free(&from);
}

static void indices_that_lead_nowhere(void **state)
{
    (void)state;
    static const char *const rows[][2] = {
        {"{}", "weight_map"},
        {"{\"weight_map\": {}}", "weight_map"},
        {"{\"weight_map\": [\"a.safetensors\"]}", "weight_map"},
        {"{\"weight_map\": {" NORM ": \"c.safetensors\"}}", "c.safetensors"},
        {"{\"weight_map\": {" NORM ": \"../m/a.safetensors\"}}", "no plain file name"},
        {"{\"weight_map\": {" NORM ": \"/etc/passwd\"}}", "no plain file name"},
        {"{\"weight_map\": {" NORM ": \"..\"}}", "no plain file name"},
        {"{\"weight_map\": {" NORM ": 7}}", "no plain file name"},
        {"{\"weight_map\": {" NORM ": \"config.json\"}}", "config.json"},
        {"{\"weight_map\": {\"no.such\": \"a.safetensors\"}}", "no.such"},
        {"{\"weight_map\": {" NORM ": \"a.safetensors\", \"model.embed_tokens.weight\": "
         "\"b.safetensors\"}}",
         "it is also in"},
    };
    for (size_t i = 0; i < N_ROWS(rows); i++) {
        put_index(rows[i][0]);
        check_bad(QUANTIZE, 3, rows[i][1], rows[i][0]);
    }
}

/* ---- tokenizers -------------------------------------------------------------------------- */

static const patched tokenizer_rows[] = {
    {6, "{\"model\": {\"type\": \"Unigram\"}}", "Unigram"},
    {6, "{\"model\": {\"type\": \"WordPiece\"}}", "WordPiece"},
    {3, "{\"model\": null}", "m/tokenizer.json"},
    {3, "{\"model\": {\"vocab\": []}}", "m/tokenizer.json"},
    {3, "{\"model\": {\"vocab\": {\"a\": -1}}}", "m/tokenizer.json"},
    {3, "{\"model\": {\"vocab\": {\"a\": \"1\"}}}", "m/tokenizer.json"},
    {3, "{\"model\": {\"vocab\": {\"a\": 1000000000000}}}", "m/tokenizer.json"},
    {3, "{\"model\": {\"merges\": [[\"zz\", \"qq\"]]}}", "m/tokenizer.json"},
    {3, "{\"model\": {\"merges\": [[\"a\"]]}}", "m/tokenizer.json"},
    {3, "{\"model\": {\"merges\": [7]}}", "m/tokenizer.json"},
    {6, "{\"normalizer\": {\"type\": \"Magic\"}}", "Magic"},
    {6, "{\"pre_tokenizer\": {\"type\": \"Magic\"}}", "Magic"},
    {6, "{\"post_processor\": {\"type\": \"Magic\"}}", "Magic"},
    {6, "{\"decoder\": {\"type\": \"Magic\"}}", "Magic"},
    {3, "{\"pre_tokenizer\": [1]}", "m/tokenizer.json"},
    {3, "{\"added_tokens\": [{\"id\": \"x\", \"content\": \"<s>\"}]}", "m/tokenizer.json"},
    {3, "{\"added_tokens\": [{\"id\": 0}]}", "m/tokenizer.json"},
    {3, "{\"added_tokens\": {\"<s>\": 0}}", "m/tokenizer.json"},
    /* the text has this token, the model has no row for it */
    {3, "{\"model\": {\"vocab\": {\"~\": 9000}}}", "9000"},
};

static void tokenizers_that_do_not_fit(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_ROWS(tokenizer_rows); i++) {
        const patched *row = &tokenizer_rows[i];
        fl_test_patch_json(fresh_model(), "tokenizer.json", row->patch);
        check_bad(QUANTIZE, row->exit_code, row->part, row->patch);
    }
    const char *split =
        "{\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"Regex\": \"(\"}, "
        "\"behavior\": \"Isolated\", \"invert\": false}}";
    fl_test_patch_json(fresh_model(), "tokenizer.json", split);
    fl_test_run_program(&r, QUANTIZE, NULL);
    assert_true(r.exit_code == 3 || r.exit_code == 6);
    fl_test_drop(fresh_model(), "tokenizer.json");
    check_bad(QUANTIZE, 3, "tokenizer", "no tokenizer");
}

/* ---- texts ------------------------------------------------------------------------------- */

static void texts_that_do_not_serve(void **state)
{
    (void)state;
    static const char *const rows[][3] = {
        {"short.txt", "a b", "a window needs 16"},
        {"empty.txt", "", "a window needs 16"},
        {"a.jsonl", "{\"text\": \"fine\"}\n{\"text\": ", "a.jsonl line 2"},
        {"b.jsonl", "{\"words\": \"fine\"}\n", "b.jsonl line 1"},
        {"c.jsonl", "{\"text\": 7}\n", "text"},
        {"d.jsonl", "[\"text\"]\n", "d.jsonl line 1"},
        {"e.jsonl", "\n\n\n", "a window needs 16"},
    };
    char args[256];
    (void)fresh_model();
    for (size_t i = 0; i < N_ROWS(rows); i++) {
        fl_test_write_text(fl_test_path(rows[i][0]), rows[i][1]);
        (void)snprintf(args, sizeof args, QUANTIZE " --calib %s", rows[i][0]);
        check_bad(args, 3, rows[i][2], rows[i][0]);
    }
    check_bad(QUANTIZE " --calib nothing", 3, "nothing", "no text");
    check_bad(QUANTIZE " --calib m", 3, "m", "a directory for a text");
    check_bad(QUANTIZE " --method rtn --calib nothing", 3, "nothing", "no text, though unused");
}

/* ---- options ----------------------------------------------------------------------------- */

typedef struct combination {
    int exit_code;
    const char *args, *part;
} combination;

#define FLATTEN QUANTIZE " --method flattenquant"
static const combination combinations[] = {
    {2, FLATTEN " --w-bits 4", "only one of weight and activation bits"},
    {2, FLATTEN " --a-bits 8", "only one of weight and activation bits"},
    {2, QUANTIZE " --w-bits 16 --a-bits 8", "--w-bits"},
    {2, QUANTIZE " --w-bits 16 --a-bits 16", "nothing to do"},
    {2, QUANTIZE " --seq-len 1025", "8..1024"},
    {2, QUANTIZE " --redo-from 4", "0 to 3"},
    {2, QUANTIZE " --beta 0", "--beta"},
    {2, FLATTEN " --flatten-weights --a-granularity token --w-bits 4 --a-bits 4", "--a-gran"},
    {2, FLATTEN " --flatten-weights --w-bits 4 --a-bits 16", "--flatten-weights"},
    {2, QUANTIZE " --method flatquant --flatten-weights", "for it; use --a-gran"},
    {2, FLATTEN " --flatten-weights --weight-beta 0", "--weight-beta"},
    {2, QUANTIZE " --calib self --max-kld 0.1", "--gate-data"},
    {2, "quantize m no/such/out --method rtn --calib text", "no/such"},
    {2, "quantize m m --method rtn --calib text", "exists already"},
    {2, "quantize m text --method rtn --calib text", "exists already"},
    {2, "quantize m have --method rtn --calib text", "--resume"},
    {2, "quantize m have --method rtn --calib text --resume", "have.partial"},
    {3, "quantize nothing out --method rtn --calib text", "nothing/config.json"},
    {3, "quantize text out --method rtn --calib text", "text/config.json"},
    {3, "eval m --ppl text --seq-len 1000", "text"},
    {2, "eval m --ppl text --seq-len 1025", "1024"},
    {2, "generate m -p a --ctx-size 1025", "1024"},
};

static void options_that_do_not_go_together(void **state)
{
    (void)state;
    (void)fresh_model();
    assert_int_equal(mkdir(fl_test_path("have.partial"), 0700), 0);
    fl_test_write_text(fl_test_path("have.partial/notes"), "somebody's own");
    for (size_t i = 0; i < N_ROWS(combinations); i++) {
        const combination *c = &combinations[i];
        check_bad(c->args, c->exit_code, c->part, c->args);
    }
    assert_int_equal(unlink(fl_test_path("have.partial/notes")), 0);
    assert_int_equal(rmdir(fl_test_path("have.partial")), 0); /* nothing else came */
}

/* ---- our own models ---------------------------------------------------------------------- */

/* Blanks out the first `drop` in the list of sites. */
static void site_without(const char *dir, const char *drop)
{
    size_t n_bytes;
    char *text, *path = fl__path_join(dir, "config.json");
    assert_int_equal(fl__file_read(&text, &n_bytes, path, 1 << 20, NULL), FL_OK);
    char *sites = strstr(text, "\"sites\""), *at = sites ? strstr(sites, drop) : NULL;
    if (!at) fail_msg("no %s", drop);
    memset(at, ' ', strlen(drop));
    fl_test_put(dir, "config.json", text, n_bytes);
    fl__free(&text);
    fl__free(&path);
}

typedef struct poke {
    const char *tensor;
    size_t at, n_bytes;
    const char *bytes, *part;
    bool only_verify; /* the forward pass does not mind */
} poke;

#define L1 "model.layers.1."
static const poke pokes[] = {
    {L1 "self_attn.q_proj.weight", 5, 1, "\x80", "-128", false},
    {L1 "self_attn.q_proj.weight_scale", 0, 4, "\0\0\xc0\x7f", "weight_scale", false},
    {L1 "self_attn.q_proj.weight_scale", 4, 4, "\0\0\x80\x7f", "weight_scale", false},
    {L1 "self_attn.q_proj.weight_scale", 0, 4, "\0\0\x80\xbf", "weight_scale", false},
    {L1 "self_attn.q_proj.input_scale", 0, 4, "\0\0\0\0", "input_scale", false},
    {L1 "self_attn.q_proj.input_scale", 0, 4, "\0\0\x80\xbf", "input_scale", false},
    {L1 "self_attn.q_proj.input_scale", 0, 4, "\0\0\xc0\x7f", "input_scale", false},
    {L1 "self_attn.q_proj.input_copies", 2, 2, "\0\0", "copies", false},
    {L1 "self_attn.q_proj.input_copies", 2, 2, "\xff\xff", "copies", false},
    {L1 "mlp.down_proj.weight_copies", 2, 2, "\0\0", "down_proj.weight_copies", false},
    {L1 "mlp.down_proj.weight_copies", 2, 2, "\xff\xff", "down_proj.weight_copies", false},
    {L1 "mlp.down_proj.weight_copies", 2, 2, "\x09\0", "down_proj.weight", false},
    {L1 "mlp.down_proj.bias", 0, 4, "\0\0\xc0\x7f", "down_proj.bias", true},
    {L1 "input_layernorm.weight", 0, 4, "\0\0\xc0\x7f", "input_layernorm", true},
};

/* {"sites": [..]} of a model whose first site says this. */
static const patched site_rows[] = {
    {3, "\"w_bits\": 8", "w_bits"},
    {3, "\"a_bits\": 8", "a_bits"},
    {3, "\"site\": \"qkv\"", "site"},
    {3, "\"layer\": 0", "layer"},
    {3, "\"activation\": \"static\"", "activation"},
};

static void quantised_models_that_are_damaged(void **state)
{
    (void)state;
    char good[512], dir[512]; /* fl_test_path's do not last for so many runs */
    (void)snprintf(good, sizeof good, "%s", fl_test_path("good"));
    (void)snprintf(dir, sizeof dir, "%s", fl_test_path("m"));
    fl_quantize_options o = fl_test_quantize_options(NULL, "good", "flattenquant");
    o.w_bits = o.a_bits = 8;
    o.flatten_weights = FL_ON;
    (void)fl_test_quantize(&o, NULL);
    for (size_t i = 0; i < N_ROWS(pokes); i++) {
        const poke *p = &pokes[i];
        fl_test_link_model(dir, good);
        fl_test_poke(dir, p->tensor, p->at, p->bytes, p->n_bytes);
        check_bad("verify m --json", 3, p->part, p->tensor);
        if (!p->only_verify) check_bad("generate m -p a -n 1", 3, p->part, p->tensor);
    }
    for (size_t i = 0; i < N_ROWS(site_rows); i++) {
        const patched *row = &site_rows[i];
        char drop[64];
        fl_test_link_model(dir, good);
        (void)snprintf(drop, sizeof drop, "%s,", row->patch);
        site_without(dir, drop);
        check_bad("generate m -p a -n 1", row->exit_code, row->part, row->patch);
        fl_test_run_program(&r, "verify m", NULL);
        assert_int_equal(r.exit_code, 3);
    }
    static const char *const configs[][2] = {
        {"{\"quantization_config\": {\"sites\": []}}", "sites"},
        {"{\"quantization_config\": {\"sites\": null}}", "sites"},
        {"{\"quantization_config\": {\"kv_bits\": 4}}", "kv_bits"},
        {"{\"quantization_config\": {\"k_bits\": 5}}", "k_bits"},
        {"{\"quantization_config\": {\"k_bits\": 1}}", "k_bits"},
        {"{\"quantization_config\": {\"v_bits\": 32}}", "v_bits"},
        {"{\"quantization_config\": {\"v_bits\": \"4\"}}", "v_bits"},
        {"{\"quantization_config\": {\"method\": 7}}", "method"},
    };
    for (size_t i = 0; i < N_ROWS(configs); i++) {
        fl_test_link_model(dir, good);
        fl_test_patch_json(dir, "config.json", configs[i][0]);
        check_bad("inspect m", 3, configs[i][1], configs[i][0]);
    }
    fl_test_link_model(dir, good);
    fl_test_drop(dir, "model-00003-of-00005.safetensors");
    check_bad("generate m -p a -n 1", 3, "model-00003-of-00005.safetensors", "a shard is gone");
    fl_test_link_model(dir, good);
    write_text();
    check_bad(QUANTIZE, 6, "quantised already", "quantising twice");
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(configs_that_do_not_fit),
    cmocka_unit_test(files_that_are_no_json),
    cmocka_unit_test(headers_that_lie),
    cmocka_unit_test(weights_that_are_cut_or_garbage),
    cmocka_unit_test(numbers_that_are_none),
    cmocka_unit_test(indices_that_lead_nowhere),
    cmocka_unit_test(tokenizers_that_do_not_fit),
    cmocka_unit_test(texts_that_do_not_serve),
    cmocka_unit_test(options_that_do_not_go_together),
    cmocka_unit_test(quantised_models_that_are_damaged),
};
FL_TEST_MAIN(tests)
