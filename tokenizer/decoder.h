/* The decoder of a tokenizer: a list of steps from the strings of tokens to text. A step is a
 * row of the table in decoder.c. A decoder is immutable once open and owns its texts; a
 * decoding is one text on its way, and its holder's. Not for: which tokens a text has
 * (tokenizer.h). */
#ifndef FKV_TOKENIZER_DECODER_H
#define FKV_TOKENIZER_DECODER_H

#include <jansson.h>

#include "runner/base/buf.h"
#include "tokenizer/steps.h"

typedef struct fkv_decoder fkv_decoder;

/* What a step remembers of the tokens before. */
typedef struct fkv_decoding_state {
    size_t n;          /* Strip: characters that were looked at */
    bool past;         /* Strip: the start is behind; Metaspace: so is the first token */
    uint8_t n_partial; /* ByteLevel: bytes of a character that is not complete */
    char partial[4];
} fkv_decoding_state;

/* Zero-initialise. */
typedef struct fkv_decoding {
    fkv_decoding_state states[FKV_STEPS_MAX];
    fkv_buf texts[FKV_STEPS_MAX]; /* what a step writes */
    fkv_buf held;                 /* ByteFallback: a run of bytes, of which the next token may be one */
} fkv_decoding;

/* Reads the "decoder" of file. The result is NULL after a failure. */
fkv_status fkv_decoder_open(const json_t *o, const char *file, fkv_decoder **out, fkv_err *err);
void fkv_decoder_close(fkv_decoder *decoder);

/* Takes the next token's string and appends to out the text that no later token changes. */
fkv_status fkv_decoder_push(const fkv_decoder *decoder, fkv_decoding *d, const char *token, size_t n,
                            fkv_buf *out, fkv_err *err);
/* Appends what stands behind that text if no token follows; d is as it was. */
fkv_status fkv_decoder_rest(const fkv_decoder *decoder, fkv_decoding *d, fkv_buf *out, fkv_err *err);
/* d may take another text. */
void fkv_decoding_restart(fkv_decoding *d);
void fkv_decoding_free(fkv_decoding *d);

#endif
