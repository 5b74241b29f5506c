/* Values as text: str(), repr(), and JSON as json.dumps writes it. Buffers are the caller's, after
 * a failure with a part of the text. */
#ifndef FKV_TEMPLATE_TEXT_H
#define FKV_TEMPLATE_TEXT_H

#include "tokenizer/template_value.h"

/* Appends str(v): what {{ v }} prints. */
fkv_status fkv_tv_print(fkv_trun *run, fkv_tvalue v, fkv_buf *out);

/* str(v) as a value; a string stays as it is. */
fkv_status fkv_tv_string(fkv_trun *run, fkv_tvalue v, fkv_tvalue *out);
/* The same, and Markup becomes a plain string. */
fkv_status fkv_tv_plain_string(fkv_trun *run, fkv_tvalue v, fkv_tvalue *out);

typedef struct fkv_tjson {
    bool ascii, sorted;
    bool indented;     /* a line for each member */
    fkv_tvalue indent; /* a string: of one level */
    fkv_tvalue comma, colon;
} fkv_tjson;

fkv_status fkv_tv_json(fkv_trun *run, fkv_tvalue v, const fkv_tjson *how, fkv_tvalue *out);

/* A copy of the buffer's text. */
fkv_status fkv_tv_take(fkv_trun *run, const fkv_buf *text, fkv_tvalue *out);

#endif
