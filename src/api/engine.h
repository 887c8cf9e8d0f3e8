/* engine.h - what stands behind fl_engine and fl_session. SPDX-License-Identifier: MIT */
#ifndef FL_API_ENGINE_H
#define FL_API_ENGINE_H

#include "api/open_device.h"
#include "model/runner.h"
#include "text/tokenizer.h"

/* Rows of a prompt that go through the model at a time. */
enum { FL_PROMPT_CHUNK_ROWS = 512, FL_DEVICE_CHUNK_ROWS = 2048 };

struct fl_engine {
    fl_exec exec;
    fl_model *model;
    fl_tokenizer *tokenizer;
    fl_device device;
    fl_device_model *device_model; /* NULL: CPU */
};

struct fl_session {
    fl_engine *engine; /* borrowed */
    fl_runner *runner; /* one sequence of n_positions tokens */
    int max_rows;      /* of one chunk of a prompt */
    int32_t *ids;      /* [n_positions] owned: the tokens fed so far */
    float *logits;     /* [vocab_size] owned: behind the last of them */
    int n_positions, length;
};

/* Formats of K and V in words, as in fl_engine_info. */
const char *fl__kv_format_name(const fl_model *model);
/* Checks that every id is below the vocabulary's size of the model; FL_E_INPUT. */
fl_status fl__engine_check_ids(const fl_model *model, const int32_t *ids, size_t n_ids,
                               fl_err *err);

#endif
