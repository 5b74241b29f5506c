/* HF tokenizer.json: text to token ids and back, as HF tokenizers does it.
 *
 * BPE, byte-level (Llama 3, Qwen, GPT-2) and SentencePiece's (Llama 2, Mistral, Gemma): added
 * tokens; normalizer, pre-tokenizer and decoder as lists of steps, each a row of a table;
 * merges; the post-processor's tokens. What the file asks for and this build does not do is
 * refused by name when it is opened; its "truncation" and "padding" are a caller's matter and
 * not looked at. tokenizer_config.json changes it as in HF transformers 5, which is logged.
 * A tokenizer owns what it read, is immutable once open, and any number of threads may
 * use it, each with a scratch of its own. Not for: cutting prompts, chat templates.
 */
#ifndef FKV_TOKENIZER_H
#define FKV_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runner/base/buf.h"
#include "runner/base/status.h"
#include "tokenizer/ids.h"

typedef struct fkv_tokenizer fkv_tokenizer;
typedef struct fkv_tokenizer_scratch fkv_tokenizer_scratch;
typedef struct fkv_tokenizer_stream fkv_tokenizer_stream;

/* Reads dir/tokenizer.json and, where it is, dir/tokenizer_config.json. Errors are FKV_E_INPUT with file and
 * field; *out is NULL then. */
fkv_status fkv_tokenizer_open(const char *dir, fkv_tokenizer **out, fkv_err *err);
void fkv_tokenizer_close(fkv_tokenizer *tokenizer);

/* Largest id plus one. */
int32_t fkv_tokenizer_n_ids(const fkv_tokenizer *tokenizer);
/* The same without added tokens, but with those that the post-processor puts around every text: what a
 * model must have. */
int32_t fkv_tokenizer_n_needed_ids(const fkv_tokenizer *tokenizer);

/* *out is NULL after a failure. */
fkv_status fkv_tokenizer_scratch_new(const fkv_tokenizer *tokenizer, fkv_tokenizer_scratch **out,
                                     fkv_err *err);
void fkv_tokenizer_scratch_free(fkv_tokenizer_scratch *scratch);

/* Replaces ids with those of n bytes of UTF-8. Special tokens written in the
 * text are recognised. With special, the post-processor's tokens are added:
 * *n_prefix in front (BOS) and *n_suffix behind (both may be NULL). Invalid
 * UTF-8 is FKV_E_INPUT, and so is a text on which the file's regex runs away. ids are the
 * caller's, after a failure with some of them. */
fkv_status fkv_tokenizer_encode(const fkv_tokenizer *tokenizer, fkv_tokenizer_scratch *scratch,
                                const char *text, size_t n, bool special, fkv_ids *ids, size_t *n_prefix,
                                size_t *n_suffix, fkv_err *err);

/* Appends the text of n ids. Special tokens are left out with skip_special. The
 * result is always valid UTF-8: bytes that are not become U+FFFD, as HF does.
 * An id that the tokenizer does not have is left out with skip_special (a model's
 * vocabulary may be padded), else FKV_E_INPUT. After a failure out is as it was. */
fkv_status fkv_tokenizer_decode(const fkv_tokenizer *tokenizer, const int32_t *ids, size_t n,
                                bool skip_special, fkv_buf *out, fkv_err *err);

/* Decoding token by token: one text at a time, one thread. The tokenizer outlives it. *out is
 * NULL after a failure. */
fkv_status fkv_tokenizer_stream_new(const fkv_tokenizer *tokenizer, bool skip_special,
                                    fkv_tokenizer_stream **out, fkv_err *err);
void fkv_tokenizer_stream_free(fkv_tokenizer_stream *stream);
/* Begins another text. */
void fkv_tokenizer_stream_restart(fkv_tokenizer_stream *stream);
/* Takes an id and appends the text that is certain now: no later id changes it. */
fkv_status fkv_tokenizer_stream_push(fkv_tokenizer_stream *stream, int32_t id, fkv_buf *out, fkv_err *err);
/* Appends what is behind the certain text as long as no id follows, so that both together are
 * fkv_tokenizer_decode's; more may be pushed. */
fkv_status fkv_tokenizer_stream_rest(fkv_tokenizer_stream *stream, fkv_buf *out, fkv_err *err);

#endif
