/* encoding.c - pieces on their way through the pre-tokeniser to the model, with a cache.
 *
 * The cache is open addressing with a few probes: a piece that finds no free slot within them
 * is not kept, so that text made to collide costs no more than text without repetitions.
 * SPDX-License-Identifier: MIT */
#include "text/encoding.h"

#include "base/mem.h"

#include <string.h>

enum {
    FIRST_CACHE = 1024,
    MAX_CACHE = 1 << 18,
    MAX_PROBES = 8,
    MAX_KEY_BYTES = 255,
    FIRST_IDS = 64
};

void fl__encoding_init(fl_encoding *e, const fl_tokenizer *t)
{
    *e = (fl_encoding){.tokenizer = t};
}

void fl__encoding_fini(fl_encoding *e)
{
    fl__free(&e->ids);
    fl__matcher_fini(&e->matcher);
    fl__text_buf_fini(&e->repaired);
    for (int i = 0; i < 2; i++) fl__text_buf_fini(&e->normalized[i]);
    for (int i = 0; i < FL_MAX_STEPS; i++) {
        fl__text_buf_fini(&e->prefixed[i]);
        fl__text_buf_fini(&e->mapped[i]);
    }
    fl__free(&e->cache);
    fl__text_buf_fini(&e->keys);
    fl__free(&e->model_scratch);
}

static fl_status reserve_ids(fl_encoding *e, size_t n_more, fl_err *err)
{
    if (n_more <= e->ids_room - e->n_ids) return FL_OK;
    size_t room = e->ids_room > 0 ? e->ids_room : FIRST_IDS;
    while (room - e->n_ids < n_more) room *= 2;
    if (fl__grow((void **)&e->ids, room, sizeof *e->ids))
        return fl__fail_nomem(err, "token ids", room * sizeof *e->ids);
    e->ids_room = room;
    return FL_OK;
}

fl_status fl__encoding_add(fl_encoding *e, int32_t id, fl_err *err)
{
    const fl_status st = reserve_ids(e, 1, err);
    if (!st) e->ids[e->n_ids++] = id;
    return st;
}

void *fl__encoding_scratch(fl_encoding *e, size_t n_bytes)
{
    if (n_bytes > e->model_scratch_bytes) {
        fl__free(&e->model_scratch);
        e->model_scratch_bytes = 0;
        e->model_scratch = fl__alloc(n_bytes, 1);
        if (e->model_scratch) e->model_scratch_bytes = n_bytes;
    }
    return e->model_scratch;
}

/* The slot of a piece, or a free one for it, or NULL. */
static fl_cached_piece *find(const fl_encoding *e, uint64_t hash, const char *text,
                             size_t n_bytes)
{
    if (e->n_cache == 0) return NULL;
    for (size_t probe = 0; probe < MAX_PROBES; probe++) {
        fl_cached_piece *c = &e->cache[(hash + probe) & (e->n_cache - 1)];
        if (!c->used) return c;
        if (c->hash == hash && c->n_key_bytes == n_bytes &&
            memcmp(e->keys.data + c->key, text, n_bytes) == 0)
            return c;
    }
    return NULL;
}

static int grow_cache(fl_encoding *e)
{
    if (e->n_cache >= MAX_CACHE || 2 * e->n_cached < e->n_cache) return 0;
    const size_t n_old = e->n_cache;
    const size_t n_new = n_old > 0 ? 2 * n_old : FIRST_CACHE;
    fl_cached_piece *old = e->cache;
    fl_cached_piece *cache = fl__calloc(n_new, sizeof *cache);
    if (!cache) return -1;
    e->cache = cache;
    e->n_cache = n_new;
    e->n_cached = 0;
    for (size_t i = 0; i < n_old; i++) {
        if (!old[i].used) continue;
        fl_cached_piece *c =
            find(e, old[i].hash, e->keys.data + old[i].key, old[i].n_key_bytes);
        if (!c) continue; /* no room within the probes: forgotten */
        *c = old[i];
        e->n_cached++;
    }
    fl__free(&old);
    return 0;
}

/* Remembers that a piece gave ids[first_id..n_ids). */
static int remember(fl_encoding *e, uint64_t hash, const char *text, size_t n_bytes,
                    size_t first_id)
{
    if (grow_cache(e)) return -1;
    fl_cached_piece *c = find(e, hash, text, n_bytes);
    if (!c || c->used) return 0;
    const size_t key = e->keys.n_bytes;
    if (fl__text_buf_append(&e->keys, text, n_bytes)) return -1;
    *c = (fl_cached_piece){
        hash, key, first_id, (uint32_t)n_bytes, (uint32_t)(e->n_ids - first_id), true};
    e->n_cached++;
    return 0;
}

static fl_status tokenize(fl_encoding *e, const char *text, size_t n_bytes, fl_err *err)
{
    const fl_step *model = &e->tokenizer->model.step[0];
    const bool cacheable = n_bytes <= MAX_KEY_BYTES;
    const uint64_t hash = cacheable ? fl__text_hash(text, n_bytes) : 0;
    const fl_cached_piece *known = cacheable ? find(e, hash, text, n_bytes) : NULL;
    fl_status st;
    if (n_bytes > INT32_MAX)
        return fl__fail(err, FL_E_INPUT,
                        "text too long: a piece of %zu bytes: the pre-tokeniser must cut it to "
                        "less than 2 GiB; use shorter lines",
                        n_bytes);
    if (known && known->used) {
        st = reserve_ids(e, known->n_ids, err);
        if (st || known->n_ids == 0) return st;
        memcpy(e->ids + e->n_ids, e->ids + known->first_id, known->n_ids * sizeof *e->ids);
        e->n_ids += known->n_ids;
        return FL_OK;
    }
    const size_t first_id = e->n_ids;
    st = model->row->tokenize(e, model->settings, &e->tokenizer->vocab, text, n_bytes, err);
    if (st || !cacheable) return st;
    if (remember(e, hash, text, n_bytes, first_id))
        return fl__fail_nomem(err, "cache of words", e->n_cache * sizeof *e->cache);
    return FL_OK;
}

fl_status fl__pretokenize(fl_encoding *e, int step, const char *text, size_t n_bytes,
                          fl_err *err)
{
    const fl_steps *steps = &e->tokenizer->pretokenizer;
    if (step == steps->n) return tokenize(e, text, n_bytes, err);
    const fl_step *s = &steps->step[step];
    return s->row->pretokenize(e, step, s->settings, text, n_bytes, err);
}
