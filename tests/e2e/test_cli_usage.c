/* test_cli_usage.c - The command line's contract: broken option combinations give their exit
 * code, one line on stderr and nothing on stdout; help and version go to stdout; the
 * environment mirrors options.
 * SPDX-License-Identifier: MIT */
#include "support/fl_test.h"
#include "support/run_program.h"
#include "support/small_model.h"

#include "base/file.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

static fl_test_run_result r;

typedef struct broken {
    int exit_code;
    const char *args, *env;
    const char *part; /* of the error */
} broken;

/* One line "flatiron: <what>: <where>: <why>; <what to do>", nothing else, nothing left behind.
 */
static void check_broken(const broken *b)
{
    fl_test_run_program(&r, b->args, b->env);
    const char *newline = strchr(r.err, '\n');
    const bool one_line = newline && newline[1] == '\0';
    if (r.exit_code != b->exit_code || !one_line || r.n_out_bytes != 0 ||
        strncmp(r.err, "flatiron: ", 10) != 0 || !strstr(r.err, b->part) || !strchr(r.err, ';'))
        fail_msg("flatiron %s: exit code %d, stdout of %zu bytes, stderr: %s", b->args,
                 r.exit_code, r.n_out_bytes, r.err);
    struct stat st;
    if (stat(fl_test_path("out"), &st) == 0 || stat(fl_test_path("out.partial"), &st) == 0)
        fail_msg("flatiron %s left output behind", b->args);
}

#define CHECK_ALL(ROWS)                                                                        \
    for (size_t i = 0; i < sizeof(ROWS) / sizeof *(ROWS); i++) check_broken(&(ROWS)[i])

#define QUANTIZE "quantize m out --method rtn --calib c "
static void usage_errors(void **state)
{
    (void)state;
    static const broken rows[] = {
        {2, "", NULL, "missing verb"},
        {2, "frobnicate", NULL, "unknown verb: 'frobnicate'"},
        {2, "--json eval m", NULL, "the verb comes first"},
        {2, "eval", NULL, "missing argument: MODEL"},
        {2, "eval m", NULL, "missing option: --ppl"},
        {2, "eval m --ppl", NULL, "missing value: --ppl"},
        {2, "eval m --ppl --json", NULL, "missing value: --ppl"},
        {2, "eval m --ppl=", NULL, "bad value: --ppl"},
        {2, "eval m n --ppl f", NULL, "too many arguments: 'n'"},
        {2, "eval m --ppl f --frob", NULL, "unknown option: --frob"},
        {2, "eval m --ppl f --seqlen 9", NULL, "did you mean --seq-len?"},
        {2, "eval m --ppl f -x", NULL, "unknown option: -x"},
        {2, "eval m --ppl f --seq-len x", NULL, "'x' is no whole number"},
        {2, "eval m --ppl f --seq-len 12k", NULL, "'12k' is no whole number"},
        {2, "eval m --ppl f --seq-len 1", NULL, "'1' is out of range"},
        {2, "eval m --ppl f --seq-len 99999999999999999999", NULL, "is out of range"},
        {2, "eval m --ppl f --threads -1", NULL, "'-1' is out of range"},
        {2, "eval m --ppl f --isa sse", NULL, "'sse' is not one of the choices"},
        {2, "eval m --ppl f --json=yes", NULL, "it takes no value"},
        {2, "quantize m", NULL, "missing argument: OUT"},
        {2, "quantize m out", NULL, "missing option: --method"},
        {2, "quantize m out --method rtn", NULL, "missing option: --calib"},
        {2, "quantize m out --method best --calib c", NULL,
         "use flattenquant, flatquant, smoothquant, quarot or rtn"},
        {2, QUANTIZE "--w-bits 5", NULL, "'5' is not one of the choices; use 16, 8, 4 or 3"},
        {2, QUANTIZE "--a-granularity row", NULL, "use tensor or token"},
        {2, QUANTIZE "--alpha 1.5", NULL, "from 0 to 1 or auto"},
        {2, QUANTIZE "--alpha automatic", NULL, "'automatic' is no number"},
        {2, QUANTIZE "--int4-ratio nan", NULL, "'nan' is no number"},
        {2, QUANTIZE "--int4-ratio 1e999", NULL, "is out of range"},
        {2, QUANTIZE "--seed -1", NULL, "from 0 to 2^64 - 1"},
        {2, QUANTIZE "--seed 18446744073709551616", NULL, "is out of range"},
        {2, QUANTIZE "--samples 0", NULL, "'0' is out of range"},
        {2, QUANTIZE "--device tpu", NULL, "'tpu' is not one of the choices"},
        {2, "generate m", NULL, "give one of them"},
        {2, "generate m -p a -f b", NULL, "two prompts"},
        {2, "generate m -p", NULL, "missing value: -p"},
        {2, "generate m -p a --temp hot", NULL, "'hot' is no number"},
        {2, "generate m -p a --top-p 0", NULL, "'0' is out of range"},
        {2, "generate m -p a --min-p 2", NULL, "'2' is out of range"},
        {2, "generate m -p a -n 1.5", NULL, "'1.5' is no whole number"},
        {2, "bench", NULL, "missing argument: WHAT"},
        {2, "bench disks", NULL, "'disks' cannot be measured"},
        {2, "bench kernels -o xml", NULL, "use md, csv or json"},
        {2, "bench model --w-bits 3", NULL, "--w-bits"},
        {2, "bench model --layers 33", NULL, "give 1 to 32"},
        {2, "bench model -p 8000 -n 1000", NULL, "context"},
        {6, "bench model --device cuda", NULL, "--device"},
        {2, "verify", NULL, "missing argument: MODEL"},
        {2, "devices now", NULL, "too many arguments: 'now'"},
        {2, "eval m --ppl f", "FLATIRON_SEQ_LEN=abc", "FLATIRON_SEQ_LEN: 'abc'"},
        {2, "eval m --ppl f", "FLATIRON_JSON=perhaps", "FLATIRON_JSON: 'perhaps'"},
        {2, "eval m --ppl f", "FLATIRON_ISA=mmx", "FLATIRON_ISA: 'mmx'"},
        {2, QUANTIZE, "FLATIRON_NO_SMOOTH=2", "FLATIRON_NO_SMOOTH: '2'"},
        {2, QUANTIZE "--kv-bits 5", NULL, "--kv-bits"},
        {2, QUANTIZE "--head-bits 4", NULL, "--head-bits"},
        {2, QUANTIZE "--v_bits 0", NULL, "--v_bits"},
    };
    CHECK_ALL(rows);
}

static void what_later_versions_have_is_not_in_this_one(void **state)
{
    (void)state;
    static const broken rows[] = {
        {6, "chat m", NULL, "not in this version: chat"},
        {6, "serve m --port 8080", NULL, "not in this version: serve"},
        {6, "export m out --format gguf", NULL, "not in this version: export"},
        {6, "eval m --tasks piqa", NULL, "not in this version: --tasks"},
        {6, "eval m --tasks=piqa", NULL, "not in this version: --tasks"},
        {6, "eval m --ppl f", "FLATIRON_TASKS=piqa", "not in this version: FLATIRON_TASKS"},
        {6, "inspect m --report r.html", NULL, "not in this version: --report"},
        {6, QUANTIZE "--device cuda:1", NULL, "cuda:1 will come with a later version"},
    };
    CHECK_ALL(rows);
}

/* cuda:1000 is not there, with the plugin, without it, and on machines without a GPU. */
static void a_device_that_is_not_there_is_said(void **state)
{
    (void)state;
    static const broken rows[] = {
        {2, "eval m --ppl f --device tpu", NULL, "device: 'tpu' is no device"},
        {2, "generate m -p a --device cuda:x", NULL, "'cuda:x' is no device"},
        {6, "eval m --ppl f --device cuda:1000", NULL, "GPU"},
        {6, "generate m -p a --device cuda:1000", NULL, "GPU"},
        {6, "bench model --device cuda:1000", NULL, "GPU"},
        {6, "bench kernels --device cuda", NULL, "make cuda-bench"},
    };
    CHECK_ALL(rows);
}

static void missing_and_foreign_files_are_bad_input(void **state)
{
    (void)state;
    static const broken rows[] = {
        {3, "eval m --ppl nothing-here", NULL, "nothing-here"},
        {3, "eval m --ppl text", NULL, "config.json"},
        {3, "generate m -p a", NULL, "config.json"},
        {3, "generate m -p a", "FLATIRON_THREADS=1", "config.json"},
        {3, "inspect m", NULL, "config.json"},
        {3, "inspect text", NULL, "config.json"},
        {3, "generate broken -p a", NULL, "broken/config.json"},
        {3, "bench kernels --shape 12x", NULL, "no such shape and no such file"},
        {3, "bench model --shape 12x", NULL, "no such shape and no such file"},
        {3, "bench kernels --shape text", NULL, "line 1 is not M N K"},
        {6, "generate mamba -p a", NULL, "mamba"},
    };
    fl_test_write_text(fl_test_path("text"), "some words\n");
    assert_int_equal(fl__dir_make(fl_test_path("broken"), NULL), FL_OK);
    assert_int_equal(fl__dir_make(fl_test_path("mamba"), NULL), FL_OK);
    fl_test_write_text(fl_test_path("broken/config.json"), "{\"model_type\": ");
    fl_test_write_text(fl_test_path("mamba/config.json"), "{\"model_type\": \"mamba\"}");
    CHECK_ALL(rows);
}

static void help_and_version_go_to_stdout(void **state)
{
    (void)state;
    static const char *const verbs[] = {"quantize", "eval",   "generate", "bench",
                                        "inspect",  "verify", "devices"};
    char args[64];
    fl_test_run_program(&r, "--version", NULL);
    assert_int_equal(r.exit_code, 0);
    assert_string_equal(r.out, "flatiron " FL_VERSION "\n");
    fl_test_run_program(&r, "--help", NULL);
    assert_int_equal(r.exit_code, 0);
    for (size_t i = 0; i < sizeof verbs / sizeof *verbs; i++)
        assert_non_null(strstr(r.out, verbs[i]));
    for (size_t i = 0; i < sizeof verbs / sizeof *verbs; i++) {
        (void)snprintf(args, sizeof args, "%s --frob --help", verbs[i]);
        fl_test_run_program(&r, args, NULL);
        assert_int_equal(r.exit_code, 0);
        assert_int_equal(r.n_err_bytes, 0);
        assert_non_null(strstr(r.out, "Usage: flatiron "));
        assert_non_null(strstr(r.out, "Examples:\n  flatiron "));
        for (const char *line = r.out; *line; line += strcspn(line, "\n") + 1)
            assert_true(strcspn(line, "\n") <= 100 && line[strcspn(line, "\n") - 1] != ' ');
    }
    fl_test_run_program(&r, "quantize --help", NULL);
    assert_non_null(strstr(r.out, "(default 0.4829)"));
    assert_non_null(strstr(r.out, "--[no-]smooth"));
}

/* ---- runs -------------------------------------------------------------------------------- */

static void write_model_and_text(void)
{
    char text[400];
    const fl_small_model m = fl_test_small_model_defaults();
    (void)fl_test_small_model("m", &m);
    for (int i = 0; i < 399; i++) text[i] = (char)('a' + i * i * 3 % 26);
    text[399] = '\0';
    fl_test_write_text(fl_test_path("text"), text);
}

/* The document on stdout, which must be all of it. */
static json_t *run_json(const char *args, const char *env)
{
    json_error_t why;
    fl_test_run_program(&r, args, env);
    if (r.exit_code != 0) fail_msg("flatiron %s: %d: %s", args, r.exit_code, r.err);
    json_t *doc = json_loads(r.out, 0, &why);
    if (!doc) fail_msg("flatiron %s: %s: %s", args, why.text, r.out);
    return doc;
}

static double number_of(const json_t *doc, const char *key)
{
    const json_t *v = json_object_get(doc, key);
    if (!json_is_number(v)) fail_msg("%s is no number: %s", key, r.out);
    return json_number_value(v);
}

static void eval_prints_one_json_document(void **state)
{
    (void)state;
    write_model_and_text();
    json_t *doc = run_json("eval m --ppl text --seq-len 40 --baseline m --json", NULL);
    assert_int_equal(number_of(doc, "windows"), 9);
    assert_int_equal(number_of(doc, "tokens"), 399);
    assert_int_equal(number_of(doc, "n_predictions"), 9 * 39);
    assert_int_equal(number_of(doc, "seq_len"), 40);
    assert_true(number_of(doc, "ppl") > 1);
    assert_float_equal(number_of(doc, "kld_mean"), 0, 1e-9);
    assert_float_equal(number_of(doc, "top1_agreement"), 1, 0);
    const json_t *baseline = json_object_get(doc, "baseline");
    assert_string_equal(json_string_value(json_object_get(baseline, "quant_method")), "none");
    json_decref(doc);
    doc = run_json("eval m --ppl text --seq-len 40 --json", NULL);
    assert_true(json_is_null(json_object_get(doc, "kld_mean")));
    assert_true(json_is_null(json_object_get(doc, "baseline")));
    json_decref(doc);
}

static void the_command_line_wins_over_the_environment(void **state)
{
    (void)state;
    write_model_and_text();
    json_t *doc = run_json("eval m --ppl text", "FLATIRON_JSON=1 FLATIRON_SEQ_LEN=50");
    assert_int_equal(number_of(doc, "seq_len"), 50);
    json_decref(doc);
    doc = run_json("eval m --ppl text --seq-len 40 --json",
                   "FLATIRON_SEQ_LEN=50 FLATIRON_THREADS=3 OMP_NUM_THREADS=2");
    assert_int_equal(number_of(doc, "seq_len"), 40);
    assert_int_equal(number_of(doc, "threads"), 3);
    json_decref(doc);
    doc = run_json("eval m --ppl text --json", "OMP_NUM_THREADS=2,1");
    assert_int_equal(number_of(doc, "threads"), 2);
    json_decref(doc);
}

static void eval_prints_a_table(void **state)
{
    (void)state;
    write_model_and_text();
    fl_test_run_program(&r, "eval m --ppl text --baseline m", NULL);
    assert_int_equal(r.exit_code, 0);
    assert_non_null(strstr(r.out, "top-1 %"));
    assert_non_null(strstr(r.out, "4 windows of 96 tokens"));
}

static void generate_streams_text_and_gives_json(void **state)
{
    (void)state;
    write_model_and_text();
    json_t *doc = run_json("generate m -p some~words -n 12 --temp 0 --json", NULL);
    assert_int_equal(number_of(doc, "n_prompt_tokens"), 10);
    assert_int_equal(number_of(doc, "n_tokens"), 12);
    assert_int_equal(json_array_size(json_object_get(doc, "ids")), 12);
    assert_string_equal(json_string_value(json_object_get(doc, "finish_reason")), "length");
    const char *text = json_string_value(json_object_get(doc, "text"));
    fl_test_run_program(&r, "generate m --prompt=some~words -n 12 --temp 0", NULL);
    assert_int_equal(r.exit_code, 0);
    assert_memory_equal(r.out, text, strlen(text));
    assert_string_equal(r.out + strlen(text), "\n");
    assert_non_null(strstr(r.err, "10 prompt tokens"));
    json_decref(doc);
}

static void generate_reads_the_prompt_from_a_file(void **state)
{
    (void)state;
    write_model_and_text();
    fl_test_write_text(fl_test_path("prompt"), "some words\n");
    json_t *doc = run_json("generate m -f prompt -n 1 --json", NULL);
    assert_int_equal(number_of(doc, "n_prompt_tokens"), 11);
    json_decref(doc);
    check_broken(&(broken){2, "generate m -f text -n 1", NULL, "prompt too long"});
    check_broken(&(broken){2, "generate m -p a --ctx-size 97", NULL, "bad context size"});
}

static void a_level_that_is_not_there_is_lowered_with_a_warning(void **state)
{
    (void)state;
    write_model_and_text();
    json_t *devices = run_json("devices --json", NULL);
    const json_t *cpu = json_array_get(json_object_get(devices, "devices"), 0);
    const bool has_amx =
        strcmp(json_string_value(json_object_get(cpu, "highest_isa")), "amx") == 0;
    json_decref(devices);
    json_t *doc = run_json("generate m -p a -n 2 --isa amx --json", NULL);
    json_decref(doc);
    assert_int_equal(strstr(r.err, "warning: this machine does not have amx") == NULL, has_amx);
}

static void inspect_describes_a_float_model(void **state)
{
    (void)state;
    write_model_and_text();
    json_t *doc = run_json("inspect m --json", NULL);
    assert_int_equal(number_of(doc, "n_layers"), 2);
    assert_int_equal(number_of(doc, "tensors"), 20);
    assert_true(json_is_null(json_object_get(doc, "quantization")));
    const json_t *f32 = json_object_get(json_object_get(doc, "dtypes"), "F32");
    assert_int_equal(number_of(f32, "bytes"), number_of(doc, "tensor_bytes"));
    assert_int_equal(number_of(doc, "tensor_bytes"), 4 * number_of(doc, "n_params"));
    json_decref(doc);
    fl_test_run_program(&r, "inspect m", NULL);
    assert_int_equal(r.exit_code, 0);
    assert_non_null(strstr(r.out, "quantised   no"));
}

static void bits_of_keys_and_values_are_options(void **state)
{
    (void)state;
    write_model_and_text();
    fl_test_run_program(&r,
                        "quantize m out --method rtn --w-bits 8 --a-bits 8 --kv-bits 4 "
                        "--v_bits 2 --calib text",
                        NULL);
    assert_int_equal(r.exit_code, 0);
    assert_non_null(strstr(r.out, "bits of keys                 4\n"));
    assert_non_null(strstr(r.out, "bits of values               2\n"));
    fl_test_run_program(&r, "inspect out", NULL);
    assert_non_null(strstr(r.out, "KV cache    int4/int2, 72 bytes per token\n"));
    fl_test_run_program(&r, "quantize m kv --method rtn --calib text", "FLATIRON_KV_BITS=3");
    assert_int_equal(r.exit_code, 0);
    assert_non_null(strstr(r.out, "bits of values               3\n"));
}

static void output_that_cannot_be_written_is_a_failure(void **state)
{
    (void)state;
    char command[512];
    FILE *full = fopen("/dev/full", "w");
    if (!full) fl_test_skip("needs /dev/full");
    (void)fclose(full);
    (void)snprintf(command, sizeof command, "%s/flatiron devices > /dev/full 2>%s",
                   FL_BINARY_DIR, fl_test_path("stderr"));
    const int status = system(command);
    assert_int_equal(WEXITSTATUS(status), 1);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(usage_errors),
    cmocka_unit_test(what_later_versions_have_is_not_in_this_one),
    cmocka_unit_test(a_device_that_is_not_there_is_said),
    cmocka_unit_test(missing_and_foreign_files_are_bad_input),
    cmocka_unit_test(help_and_version_go_to_stdout),
    cmocka_unit_test(eval_prints_one_json_document),
    cmocka_unit_test(the_command_line_wins_over_the_environment),
    cmocka_unit_test(eval_prints_a_table),
    cmocka_unit_test(generate_streams_text_and_gives_json),
    cmocka_unit_test(generate_reads_the_prompt_from_a_file),
    cmocka_unit_test(a_level_that_is_not_there_is_lowered_with_a_warning),
    cmocka_unit_test(inspect_describes_a_float_model),
    cmocka_unit_test(bits_of_keys_and_values_are_options),
    cmocka_unit_test(output_that_cannot_be_written_is_a_failure),
};
FL_TEST_MAIN(tests)
