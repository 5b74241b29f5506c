/* Byte-pair merging. A word is either spelled as the vocabulary spells it, or bytes of a text
 * whose vocabulary is byte-level. An fkv_bpe is immutable once open and shared by threads,
 * each with a scratch of its own. Not for: cutting text into words (pretokenize.h), added
 * tokens (added.h). */
#ifndef FKV_TOKENIZER_BPE_H
#define FKV_TOKENIZER_BPE_H

#include <jansson.h>

#include "tokenizer/ids.h"
#include "tokenizer/vocab.h"

typedef struct fkv_bpe fkv_bpe;
typedef struct fkv_bpe_scratch fkv_bpe_scratch;

/* Reads the "model" object of file: fills vocab, which must be empty and
 * outlive the result, and the merges. bytes: words could come as bytes of a text. After a
 * failure *out is NULL and vocab, the caller's as ever, may hold some tokens. */
fkv_status fkv_bpe_open(const json_t *model, const char *file, bool bytes, fkv_vocab *vocab, fkv_bpe **out,
                        fkv_err *err);
void fkv_bpe_close(fkv_bpe *bpe);

/* Whether words must come as bytes; if not, spelled. */
bool fkv_bpe_takes_bytes(const fkv_bpe *bpe);

/* A word cache of fixed size and room for merging; about 2 MB, more only while
 * a long word is merged. NULL after a failure. */
fkv_status fkv_bpe_scratch_new(fkv_bpe_scratch **out, fkv_err *err);
void fkv_bpe_scratch_free(fkv_bpe_scratch *s);

/* Appends the ids of a word's n bytes, n > 0: valid UTF-8 unless it takes bytes. What the
 * vocabulary has no token for becomes byte tokens, the unk token or nothing, as in HF.
 * O(n log n), and linear where tokens are shorter than the word. */
fkv_status fkv_bpe_word(const fkv_bpe *bpe, fkv_bpe_scratch *s, const char *word, size_t n, fkv_ids *ids,
                        fkv_err *err);

#endif
