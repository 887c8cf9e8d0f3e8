/* checkpoint.h - the partial output directory: what is finished in it, and whether it may be
 * continued.
 *
 * OUT.partial holds at any moment: state.json (fingerprint), plan.json once the plan is made,
 * and for each finished block its shard and then block-NNNNN.json (its report and tensor names;
 * its presence says that the block is done). Every file appears by rename after fsync, so a
 * kill at any point leaves a directory to continue from. Activations are not stored: they are
 * computed again by running the finished blocks, which gives the same bytes.
 * SPDX-License-Identifier: MIT */
#ifndef FL_QUANT_CHECKPOINT_H
#define FL_QUANT_CHECKPOINT_H

#include "base/json.h"

typedef struct fl_checkpoint {
    char *dir;     /* OUT.partial */
    char *out_dir; /* OUT */
    bool resumed;
} fl_checkpoint;

/* fingerprint: object of strings (model, data, options, isa, version). Creates OUT.partial, or
 * with resume accepts one whose fingerprint is equal. FL_E_USAGE: OUT or OUT.partial exists, or
 * the fingerprint differs (names what). */
fl_status fl__checkpoint_open(fl_checkpoint *c, const char *out_dir, const json_t *fingerprint,
                              bool resume, fl_err *err);
/* remove_if_empty: delete OUT.partial when it holds no finished block and was made by this
 * run. */
void fl__checkpoint_close(fl_checkpoint *c, bool remove_if_empty);

/* What to say where work stops because it was told to: FL_E_INTERRUPTED. */
fl_status fl__checkpoint_interrupted(fl_err *err);

/* name in OUT.partial; owned, NULL: memory. */
char *fl__checkpoint_path(const fl_checkpoint *c, const char *name);
/* FL_OK with *out NULL when there is no such file. */
fl_status fl__checkpoint_load(json_t **out, const fl_checkpoint *c, const char *name,
                              fl_err *err);
fl_status fl__checkpoint_save(const fl_checkpoint *c, const char *name, const json_t *v,
                              fl_err *err);
/* Forgets the finished blocks from first on. FL_E_USAGE where they have been tuned. */
fl_status fl__checkpoint_redo(const fl_checkpoint *c, int first, int n_blocks, fl_err *err);

/* Where tuning is, after each of its epochs. */
#define FL_CHECKPOINT_TUNING "tuning.safetensors"
/* The tuned tensors, once tuning is done. */
#define FL_CHECKPOINT_TUNED "tuned.safetensors"

/* "block-00007.json" */
#define FL_BLOCK_NAME_BYTES 32
void fl__checkpoint_block_name(char name[FL_BLOCK_NAME_BYTES], int block);

/* Removes the checkpoint's own files and renames OUT.partial to OUT. */
fl_status fl__checkpoint_finish(fl_checkpoint *c, int n_blocks, fl_err *err);

#endif
