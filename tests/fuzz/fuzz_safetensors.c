/* fuzz_safetensors.c - any bytes as a safetensors file: refused, or views that keep their
 * promises. SPDX-License-Identifier: MIT */
#include "base/mem.h"
#include "format/safetensors.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static volatile unsigned char sink; /* keeps reads from being optimised away */

static void check(bool ok)
{
    if (!ok) abort();
}

/* What fl__tensors_open promises of a view. Reads all of its bytes, for the sanitizers. */
static size_t check_view(const fl_tensors *set, const fl_tensor_view *v)
{
    const fl_tensor_view *found;
    const unsigned char *p = v->data;
    check(fl__tensors_find(set, v->name) == v);
    check(!fl__tensor_name_problem(v->name));
    check((uintptr_t)v->data % fl__dtype_bytes(v->dtype) == 0);
    check((size_t)v->n_elements * fl__dtype_bytes(v->dtype) == v->n_bytes);
    check(!fl__tensors_require(&found, set, v->name, FL_DTYPE_BIT(v->dtype), v->n_dims, v->dims,
                               NULL));
    check(found == v);
    for (size_t i = 0; i < v->n_bytes; i++) sink ^= p[i];
    return v->n_bytes;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes)
{
    fl_err err = {""};
    fl_tensors *set;
    const size_t before = fl__mem_get().now_bytes;
    unsigned char *copy =
        fl__alloc(n_bytes, 1); /* aligned, and with a guarded end under ASan */
    if (!copy) return 0;
    if (n_bytes) memcpy(copy, data, n_bytes);
    const fl_status st = fl__tensors_open_memory(&set, copy, n_bytes, "fuzz", &err);
    if (st) {
        check(!set && err.text[0]);
    } else {
        size_t sum = 0;
        for (size_t i = 0; i < fl__tensors_count(set); i++)
            sum += check_view(set, fl__tensors_at(set, i));
        check(sum < n_bytes);
        (void)fl__tensors_metadata(set, "format");
    }
    fl__tensors_close(&set);
    fl__free(&copy);
    check(fl__mem_get().now_bytes == before);
    return 0;
}
