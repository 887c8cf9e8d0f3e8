/* decoding.h - the state of decoding one sequence of ids, at once or id by id.
 * SPDX-License-Identifier: MIT */
#ifndef FL_TEXT_DECODING_H
#define FL_TEXT_DECODING_H

#include "text/pipeline.h"

/* What one decoder step remembers. */
typedef struct fl_decode_state {
    fl_text_buf held;  /* a piece that has not ended, where the step needs all of it */
    fl_text_buf bytes; /* bytes that are no whole text yet */
    fl_text_buf made;  /* scratch: what is handed on */
    size_t count;      /* of what, the step knows */
} fl_decode_state;

struct fl_decoding {
    const fl_tokenizer *tokenizer;
    bool skip_special;
    bool begun; /* a token came: the next one is not the first */
    fl_decode_state state[FL_MAX_STEPS];
    fl_matcher matcher;
    fl_text_buf out; /* text since the last clearing */
};

fl_status fl__decoding_init(fl_decoding *d, const fl_tokenizer *t, bool skip_special,
                            fl_err *err);
void fl__decoding_reset(fl_decoding *d);
void fl__decoding_fini(fl_decoding *d);
/* A fragment for step `step`; behind the last step it becomes output. */
fl_status fl__decoding_push(fl_decoding *d, int step, const char *text, size_t n_bytes,
                            bool ends, fl_err *err);
fl_status fl__decoding_push_id(fl_decoding *d, int32_t id, fl_err *err);
fl_status fl__decoding_finish(fl_decoding *d, fl_err *err);

#endif
