/* devices.c - what there is to compute on: this machine's CPU, and its GPUs where the plugin is
 * there. SPDX-License-Identifier: MIT */
#include "api/open_device.h"
#include "base/exec.h"
#include "base/isa.h"
#include "base/json.h"
#include "base/machine.h"
#include "base/status.h"

#include <sched.h>
#include <stdio.h>

/* Names of the levels that the machine has, lowest first. */
static json_t *isa_names(void)
{
    static const struct {
        uint32_t bit;
        const char *name;
    } bits[] = {
        {FL_ISA_AVX2, "avx2"},     {FL_ISA_AVXVNNI, "avxvnni"},
        {FL_ISA_AVX512, "avx512"}, {FL_ISA_AVX512VNNI, "avx512vnni"},
        {FL_ISA_AMX, "amx"},       {FL_ISA_AMXBF16, "amxbf16"},
    };
    const uint32_t isa = fl__isa_detect();
    json_t *names = json_array();
    for (size_t i = 0; i < FL_COUNT(bits); i++)
        if (isa & bits[i].bit) (void)json_array_append_new(names, json_string(bits[i].name));
    return names;
}

enum { MAX_GPUS = 64 };

/* Appends the GPUs to devices; why: what stands in the way of a first one. */
static void list_gpus(json_t *devices, fl_err *why)
{
    for (int i = 0; i < MAX_GPUS; i++) {
        char name[16];
        fl_device device;
        fl_err err;
        (void)snprintf(name, sizeof name, "cuda:%d", i);
        if (fl__device_open(&device, name, i == 0 ? why : &err) != FL_OK) return;
        const fl_backend *be = device.backend;
        (void)json_array_append_new(
            devices, json_pack("{s:s, s:s, s:s, s:i, s:I, s:I}", "device", name, "name",
                               be->name, "detail", be->detail, "multiprocessors", be->n_units,
                               "memory_bytes", (json_int_t)be->memory_bytes,
                               "memory_available_bytes", (json_int_t)be->memory_free_bytes));
        fl__device_close(&device);
    }
}

fl_status fl_devices_run(char **report_json, fl_err *err)
{
    char name[128];
    cpu_set_t set;
    *report_json = NULL;
    fl__cpu_name(name, sizeof name);
    const int threads = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    json_t *report =
        json_pack("{s:[{s:s, s:s, s:o, s:s, s:i, s:i, s:I, s:I}], s:n}", "devices", "device",
                  "cpu", "name", name, "isa", isa_names(), "highest_isa",
                  fl__isa_name(fl__isa_detect()), "cores", fl__default_threads(), "threads",
                  threads, "memory_bytes", (json_int_t)fl__memory_bytes(),
                  "memory_available_bytes", (json_int_t)fl__memory_available_bytes(), "no_gpu");
    fl_err why = {""};
    list_gpus(json_object_get(report, "devices"), &why);
    if (why.text[0]) (void)json_object_set_new(report, "no_gpu", fl__json_text(why.text));
    if (report) *report_json = fl__json_dump(report, 2);
    json_decref(report);
    return *report_json ? FL_OK : fl__fail_nomem(err, "report", 0);
}
