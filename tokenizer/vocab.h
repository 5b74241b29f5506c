/* The tokens of a tokenizer, ids to strings and back.
 *
 * A string here is a token as the file writes it: in the byte-level alphabet
 * for the model's tokens, plain text for added ones. Zero-initialise. A vocabulary owns
 * copies of the strings; a failed add leaves it as it was. Not for: merging (bpe.h).
 */
#ifndef FKV_TOKENIZER_VOCAB_H
#define FKV_TOKENIZER_VOCAB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runner/base/buf.h"
#include "runner/base/status.h"

enum {
    /* Ids index arrays, so a file can't name any it likes. */
    FKV_ID_MAX = (1 << 24) - 1,
};

typedef struct fkv_vocab_entry {
    uint32_t at, len; /* in bytes */
    int32_t id;
} fkv_vocab_entry;

typedef struct fkv_vocab_slot {
    uint32_t tag;   /* high half of the string's hash, so that most others are told by it */
    uint32_t entry; /* its number plus 1; 0: empty */
} fkv_vocab_slot;

typedef struct fkv_vocab {
    fkv_buf bytes;
    fkv_vocab_entry *entries;
    size_t n, cap;
    fkv_vocab_slot *slots; /* open addressing; n_slots is a power of two */
    size_t n_slots;
    int32_t *entry_of; /* [n_ids], its number plus 1; 0 where no token has the id */
    int32_t n_ids, id_cap;
    size_t max_len; /* longest string in bytes */
} fkv_vocab;

typedef enum fkv_vocab_clash { FKV_VOCAB_NEW, FKV_VOCAB_STRING_TAKEN, FKV_VOCAB_ID_TAKEN } fkv_vocab_clash;

/* Adds a token with an id in [0, FKV_ID_MAX]. *clash says whether it is new; it
 * is added only then. */
fkv_status fkv_vocab_add(fkv_vocab *v, const char *string, size_t n, int32_t id, fkv_vocab_clash *clash,
                         fkv_err *err);
void fkv_vocab_free(fkv_vocab *v);

/* The id of a string, or -1. */
int32_t fkv_vocab_find(const fkv_vocab *v, const char *string, size_t n);

/* The string of an id, not NUL-terminated, or NULL. */
const char *fkv_vocab_string(const fkv_vocab *v, int32_t id, size_t *n);

#endif
