/* kv_cache.c - paged cache of keys and values.
 *
 * Memory: one slab of n_pages x n_layers x n_kv_heads slots; a slot is the K block [head_dim,
 * 64] followed by the V block [64, head_dim], each in its format. A sequence's page table maps
 * position / 64 to a page. Free pages are a stack, so a page that goes back is the next one
 * handed out.
 * SPDX-License-Identifier: MIT */
#include "model/kv_cache.h"

#include "base/float16.h"
#include "base/mem.h"

#include <string.h>

typedef struct codec {
    size_t elem_bytes;
    void (*put)(void *slot, size_t i, float x);
    /* borrowed or expanded into scratch, n elements */
    const float *(*get)(const void *slot, float *scratch, size_t n);
} codec;

static void put_f32(void *slot, size_t i, float x)
{
    ((float *)slot)[i] = x;
}

static const float *get_f32(const void *slot, float *scratch, size_t n)
{
    (void)scratch;
    (void)n;
    return slot;
}

static void put_bf16(void *slot, size_t i, float x)
{
    ((uint16_t *)slot)[i] = fl__f32_to_bf16(x);
}

static const float *get_bf16(const void *slot, float *scratch, size_t n)
{
    const uint16_t *h = slot;
    for (size_t i = 0; i < n; i++) scratch[i] = fl__bf16_to_f32(h[i]);
    return scratch;
}

static const codec codecs[] = {
    [FL_KV_F32] = {sizeof(float), put_f32, get_f32},
    [FL_KV_BF16] = {sizeof(uint16_t), put_bf16, get_bf16},
};

struct fl_kv_cache {
    fl_kv_options o;
    const codec *k, *v;
    size_t k_bytes, slot_bytes; /* of one K block; of K and V */
    int pages_per_seq;
    unsigned char *slab;
    int *table;  /* [n_sequences, pages_per_seq] page or -1 */
    int *length; /* [n_sequences] */
    int *free_pages, n_free;
};

static int pages_of(int n_positions)
{
    return (n_positions + FL_KV_PAGE - 1) / FL_KV_PAGE;
}

static size_t slot_bytes(const fl_kv_options *o)
{
    return (size_t)o->head_dim * FL_KV_PAGE *
           (codecs[o->k_format].elem_bytes + codecs[o->v_format].elem_bytes);
}

static size_t n_pages_of(const fl_kv_options *o)
{
    return (size_t)o->n_sequences * (size_t)pages_of(o->n_positions);
}

size_t fl__kv_bytes(const fl_kv_options *o)
{
    const size_t pages = n_pages_of(o);
    return pages * (size_t)o->n_layers * (size_t)o->n_kv_heads * slot_bytes(o) +
           2 * pages * sizeof(int) + (size_t)o->n_sequences * sizeof(int) + sizeof(fl_kv_cache);
}

fl_status fl__kv_new(fl_kv_cache **out, const fl_kv_options *o, fl_err *err)
{
    const size_t pages = n_pages_of(o);
    fl_kv_cache *kv;

    *out = NULL;
    kv = fl__calloc(1, sizeof *kv);
    if (!kv) return fl__fail_nomem(err, "KV cache", sizeof *kv);
    kv->o = *o;
    kv->k = &codecs[o->k_format];
    kv->v = &codecs[o->v_format];
    kv->k_bytes = (size_t)o->head_dim * FL_KV_PAGE * kv->k->elem_bytes;
    kv->slot_bytes = slot_bytes(o);
    kv->pages_per_seq = pages_of(o->n_positions);
    kv->slab = fl__alloc(pages * (size_t)o->n_layers * (size_t)o->n_kv_heads, kv->slot_bytes);
    kv->table = fl__alloc(pages, sizeof *kv->table);
    kv->free_pages = fl__alloc(pages, sizeof *kv->free_pages);
    kv->length = fl__calloc((size_t)o->n_sequences, sizeof *kv->length);
    if (!kv->slab || !kv->table || !kv->free_pages || !kv->length) {
        fl__kv_free(&kv);
        return fl__fail_nomem(err, "KV cache", fl__kv_bytes(o));
    }
    for (size_t i = 0; i < pages; i++) {
        kv->table[i] = -1;
        kv->free_pages[i] = (int)(pages - 1 - i);
    }
    kv->n_free = (int)pages;
    *out = kv;
    return FL_OK;
}

void fl__kv_free(fl_kv_cache **kv)
{
    if (!*kv) return;
    fl__free(&(*kv)->slab);
    fl__free(&(*kv)->table);
    fl__free(&(*kv)->free_pages);
    fl__free(&(*kv)->length);
    fl__free(kv);
}

void fl__kv_resize(fl_kv_cache *kv, int seq, int n)
{
    int *table = kv->table + (size_t)seq * (size_t)kv->pages_per_seq;
    const int want = pages_of(n), have = pages_of(kv->length[seq]);
    for (int p = have; p < want; p++) table[p] = kv->free_pages[--kv->n_free];
    for (int p = have; p-- > want;) {
        kv->free_pages[kv->n_free++] = table[p];
        table[p] = -1;
    }
    kv->length[seq] = n;
}

int fl__kv_length(const fl_kv_cache *kv, int seq)
{
    return kv->length[seq];
}

const fl_kv_options *fl__kv_options_of(const fl_kv_cache *kv)
{
    return &kv->o;
}

static unsigned char *slot_of(const fl_kv_cache *kv, int layer, int seq, int head, int page)
{
    const size_t id = (size_t)kv->table[(size_t)seq * (size_t)kv->pages_per_seq + (size_t)page];
    return kv->slab +
           ((id * (size_t)kv->o.n_layers + (size_t)layer) * (size_t)kv->o.n_kv_heads +
            (size_t)head) *
               kv->slot_bytes;
}

void fl__kv_append(fl_kv_cache *kv, int layer, int seq, int pos, int n, const float *k,
                   int64_t k_stride, const float *v, int64_t v_stride)
{
    const int D = kv->o.head_dim;
    for (int i = 0; i < n; i++) {
        const int page = (pos + i) / FL_KV_PAGE, t = (pos + i) % FL_KV_PAGE;
        for (int h = 0; h < kv->o.n_kv_heads; h++) {
            unsigned char *slot = slot_of(kv, layer, seq, h, page);
            const float *from_k = k + i * k_stride + (int64_t)h * D;
            const float *from_v = v + i * v_stride + (int64_t)h * D;
            for (int d = 0; d < D; d++)
                kv->k->put(slot, (size_t)d * FL_KV_PAGE + (size_t)t, from_k[d]);
            for (int d = 0; d < D; d++)
                kv->v->put(slot + kv->k_bytes, (size_t)t * (size_t)D + (size_t)d, from_v[d]);
        }
    }
}

void fl__kv_page(const float **k_t, const float **v, const fl_kv_cache *kv, int layer, int seq,
                 int kv_head, int page, float *scratch)
{
    const size_t n = (size_t)kv->o.head_dim * FL_KV_PAGE;
    const unsigned char *slot = slot_of(kv, layer, seq, kv_head, page);
    *k_t = kv->k->get(slot, scratch, n);
    *v = kv->v->get(slot + kv->k_bytes, scratch + n, n);
}
