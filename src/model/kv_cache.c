/* kv_cache.c - paged cache of keys and values.
 *
 * Memory: one slab of n_layers x n_kv_heads x n_pages slots; a slot is the block of K followed
 * by the block of V, each in its format and a multiple of 64 bytes. A sequence's page table
 * maps position / 64 to a page. Free pages are a stack, so a page that goes back is the next
 * one handed out, and pages that are handed out for the first time follow each other: one head
 * of a sequence that grew alone is one stretch of memory.
 * SPDX-License-Identifier: MIT */
#include "model/kv_cache.h"

#include "base/float16.h"
#include "base/mem.h"

#include <string.h>

/* ---- formats ----------------------------------------------------------------------------- */

static const int code_bits[FL_N_KV_FORMATS] = {
    [FL_KV_INT8] = 8, [FL_KV_INT4] = 4, [FL_KV_INT3] = 3, [FL_KV_INT2] = 2};

bool fl__kv_format_of_bits(fl_kv_format *format, int bits)
{
    *format = FL_KV_BF16;
    if (bits == 16) return true;
    for (int f = FL_KV_INT8; f < FL_N_KV_FORMATS; f++) {
        if (code_bits[f] != bits) continue;
        *format = (fl_kv_format)f;
        return true;
    }
    return false;
}

int fl__kv_code_bits(fl_kv_format format)
{
    return code_bits[format];
}

static size_t block_bytes(fl_kv_format format, fl_kv_side side, int D)
{
    const size_t n = (size_t)D * FL_KV_PAGE;
    if (code_bits[format]) return fl__kv_block_bytes(side, D, code_bits[format]);
    return n * (format == FL_KV_F32 ? sizeof(float) : sizeof(uint16_t));
}

/* One head of token t into its block; clip: two factors. */
static void put_row(void *block, fl_kv_format format, const fl_kv_codec_kernel *codec,
                    fl_kv_side side, int t, const float *x, int D, const float *clip)
{
    const int at = side == FL_KV_KEYS ? t : t * D, step = side == FL_KV_KEYS ? FL_KV_PAGE : 1;
    if (code_bits[format])
        codec->quantize(block, side, t, x, D, code_bits[format], clip[0], clip[1]);
    else if (format == FL_KV_F32)
        for (int d = 0; d < D; d++) ((float *)block)[at + d * step] = x[d];
    else
        for (int d = 0; d < D; d++) ((uint16_t *)block)[at + d * step] = fl__f32_to_bf16(x[d]);
}

/* A block as float32, borrowed or expanded into scratch. */
static const float *get_block(const void *block, fl_kv_format format, fl_kv_side side,
                              const fl_kv_codec_kernel *codec, int D, float *scratch)
{
    if (format == FL_KV_F32) return block;
    if (format == FL_KV_BF16) fl__bf16_to_f32_array(scratch, block, (size_t)D * FL_KV_PAGE);
    else codec->expand(scratch, block, side, D, code_bits[format]);
    return scratch;
}

/* ---- pages ------------------------------------------------------------------------------- */

struct fl_kv_cache {
    fl_kv_options o;
    size_t k_bytes, slot_bytes; /* of one K block; of K and V */
    size_t n_pages;
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
    return block_bytes(o->k_format, FL_KV_KEYS, o->head_dim) +
           block_bytes(o->v_format, FL_KV_VALUES, o->head_dim);
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

size_t fl__kv_token_bytes(const fl_kv_options *o)
{
    return (size_t)o->n_layers * (size_t)o->n_kv_heads * slot_bytes(o) / FL_KV_PAGE;
}

fl_status fl__kv_new(fl_kv_cache **out, const fl_kv_options *o, fl_err *err)
{
    const size_t pages = n_pages_of(o);
    fl_kv_cache *kv;

    *out = NULL;
    kv = fl__calloc(1, sizeof *kv);
    if (!kv) return fl__fail_nomem(err, "KV cache", sizeof *kv);
    kv->o = *o;
    kv->k_bytes = block_bytes(o->k_format, FL_KV_KEYS, o->head_dim);
    kv->slot_bytes = slot_bytes(o);
    kv->n_pages = pages;
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
    const size_t row = (size_t)layer * (size_t)kv->o.n_kv_heads + (size_t)head;
    return kv->slab + (row * kv->n_pages + id) * kv->slot_bytes;
}

void fl__kv_append(fl_kv_cache *kv, uint32_t isa, int layer, int seq, int pos,
                   const fl_kv_rows *rows)
{
    static const float no_clip[4] = {1, 1, 1, 1};
    const fl_kv_codec_kernel *codec = fl__kv_codec_select(isa);
    const float *clip = rows->clip ? rows->clip : no_clip;
    const int D = kv->o.head_dim;
    for (int i = 0; i < rows->n; i++) {
        const int page = (pos + i) / FL_KV_PAGE, t = (pos + i) % FL_KV_PAGE;
        const float *k = rows->k + i * rows->k_stride, *v = rows->v + i * rows->v_stride;
        for (int h = 0; h < kv->o.n_kv_heads; h++) {
            unsigned char *slot = slot_of(kv, layer, seq, h, page);
            put_row(slot, kv->o.k_format, codec, FL_KV_KEYS, t, k + (int64_t)h * D, D,
                    clip);
            put_row(slot + kv->k_bytes, kv->o.v_format, codec, FL_KV_VALUES, t,
                    v + (int64_t)h * D, D, clip + 2);
        }
    }
}

void fl__kv_page(const float **k_t, const float **v, const fl_kv_cache *kv, uint32_t isa,
                 int layer, int seq, int kv_head, int page, float *scratch)
{
    const fl_kv_codec_kernel *codec = fl__kv_codec_select(isa);
    const unsigned char *slot = slot_of(kv, layer, seq, kv_head, page);
    const int D = kv->o.head_dim;
    *k_t = get_block(slot, kv->o.k_format, FL_KV_KEYS, codec, D, scratch);
    *v = get_block(slot + kv->k_bytes, kv->o.v_format, FL_KV_VALUES, codec, D,
                   scratch + (size_t)D * FL_KV_PAGE);
}

bool fl__kv_all_codes(const fl_kv_cache *kv)
{
    return code_bits[kv->o.k_format] && code_bits[kv->o.v_format];
}

void fl__kv_codes(const void **k, const void **v, const fl_kv_cache *kv, int layer, int seq,
                  int kv_head, int page)
{
    *k = slot_of(kv, layer, seq, kv_head, page);
    *v = (const unsigned char *)*k + kv->k_bytes;
}

const void *fl__kv_layer(const fl_kv_cache *kv, int layer, size_t *n_bytes)
{
    *n_bytes = (size_t)kv->o.n_kv_heads * kv->n_pages * kv->slot_bytes;
    return kv->slab + (size_t)layer * *n_bytes;
}
