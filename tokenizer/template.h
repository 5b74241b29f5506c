/* Chat templates: messages to the text that a model expects, as HF transformers renders them.
 *
 * A subset of Jinja with HF's settings (trim_blocks, lstrip_blocks, break and continue, its tojson).
 * A template is parsed whole when it is opened; a filter, test, function or method that is not
 * supported is an error only when a rendering reaches it. Hostile templates are met with limits: a
 * rendering has 64 MiB and 16 times the bytes of its input, 10,000,000 steps, and nests 100 deep.
 * One thing is Python's where Jinja's is an accident of its compiler: a variable that the caller gave
 * is seen in a loop or macro also when a {% set %} of its name stands further down.
 * A template owns what it read, is immutable once open, and any number of threads may use it, each
 * with a scratch of its own. Not for: tokens (tokenizer.h), tools, images. */
#ifndef FKV_TEMPLATE_H
#define FKV_TEMPLATE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "runner/base/buf.h"
#include "runner/base/status.h"

typedef struct fkv_template fkv_template;
typedef struct fkv_template_scratch fkv_template_scratch;

/* Parses n bytes of text. tokens is an object of variables such as bos_token that every rendering
 * sees, or NULL; it is kept (its reference counted). name is what errors call the file. Errors are
 * FKV_E_INPUT with file and line; *out is NULL then. */
fkv_status fkv_template_open(const char *text, size_t n, const char *name, json_t *tokens, fkv_template **out,
                             fkv_err *err);

/* Reads a file of Jinja; tokens as above. */
fkv_status fkv_template_open_file(const char *path, json_t *tokens, fkv_template **out, fkv_err *err);

/* Reads a model folder's template: chat_template.jinja, else chat_template in tokenizer_config.json
 * (a list's "default"), with its special tokens. Where it has none, *out is NULL and nothing is
 * wrong. */
fkv_status fkv_template_open_model(const char *dir, fkv_template **out, fkv_err *err);

/* The special tokens of a model folder as its template sees them: a new object, maybe empty. */
fkv_status fkv_template_tokens(const char *dir, json_t **out, fkv_err *err);

void fkv_template_close(fkv_template *t);

/* Whether it names strftime_now, so that its text may depend on the day. */
bool fkv_template_is_dated(const fkv_template *t);

/* *out is NULL after a failure. */
fkv_status fkv_template_scratch_new(fkv_template_scratch **out, fkv_err *err);
void fkv_template_scratch_free(fkv_template_scratch *scratch);

typedef struct fkv_template_input {
    const json_t *messages; /* an array of objects, not empty */
    bool add_generation_prompt;
    const json_t *variables; /* an object, before tokens, tools and documents; NULL: none */
    const char *date;        /* "2024-07-26": strftime_now's day, at noon; NULL: there is none */
} fkv_template_input;

/* Appends the text. What a template can't render is FKV_E_INPUT, with a message that needs no
 * file: what it gave to raise_exception, or the line and what is wrong. After a failure out is as
 * it was. */
fkv_status fkv_template_render(const fkv_template *t, fkv_template_scratch *scratch,
                               const fkv_template_input *in, fkv_buf *out, fkv_err *err);

/* FKV_E_INPUT for what is no date of that form. */
fkv_status fkv_template_check_date(const char *date, fkv_err *err);

#endif
