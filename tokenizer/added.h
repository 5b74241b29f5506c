/* Added tokens: strings that are found in the text before anything else is done
 * with it, special ones among them. Immutable once open; owns copies of the strings.
 * Not for: the model's own tokens (bpe.h). */
#ifndef FKV_TOKENIZER_ADDED_H
#define FKV_TOKENIZER_ADDED_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "tokenizer/normalizer.h"
#include "tokenizer/vocab.h"

typedef struct fkv_added fkv_added;

/* Reads the "added_tokens" array of file (NULL: none), then more: tokens of other files (NULL:
 * none), without ids, which may have the keys "if_new" (of a string that is not there yet) and
 * "named" (special if it changes anything). Those that are new are added to vocab, which holds the model's
 * tokens; of one that is known the flags change, as in HF. What is looked for in normalized text is
 * normalized as well. After a failure *out is NULL and vocab, the caller's as ever, may hold some
 * of them. */
fkv_status fkv_added_open(const json_t *list, const json_t *more, const char *file,
                          const fkv_normalizer *normalizer, fkv_vocab *vocab, fkv_added **out, fkv_err *err);
void fkv_added_close(fkv_added *added);

bool fkv_added_is_special(const fkv_added *added, int32_t id);

/* What an added token is decoded as, where that is not its string, or NULL. */
const char *fkv_added_string(const fkv_added *added, int32_t id, size_t *n);

/* Takes a part of a text: an added token (id >= 0), or text between (-1). */
typedef fkv_status fkv_part_fn(void *ctx, int32_t id, const char *text, size_t n, fkv_err *err);

/* Calls fn with the parts of a text in order, empty ones left out. Tokens that
 * are looked for in normalized text and those that are not are two sets. */
fkv_status fkv_added_split(const fkv_added *added, bool normalized, const char *text, size_t n,
                           fkv_part_fn *fn, void *ctx, fkv_err *err);

#endif
