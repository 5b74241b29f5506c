/* What Python's str does: operations on the text of string values, which are UTF-8. Positions are
 * characters, as in Python. Results are Markup where the string is. */
#ifndef FKV_TEMPLATE_STRING_H
#define FKV_TEMPLATE_STRING_H

#include "tokenizer/template_value.h"

enum { FKV_TS_LEFT = 1, FKV_TS_RIGHT = 2 };

/* strip, lstrip, rstrip; chars is None for white space. */
fkv_status fkv_ts_strip(fkv_trun *run, fkv_tvalue v, fkv_tvalue chars, int sides, fkv_tvalue *out);

/* split and rsplit into a list; sep is None for white space, at most max cuts unless it is negative. */
fkv_status fkv_ts_split(fkv_trun *run, fkv_tvalue v, fkv_tvalue sep, int64_t max, bool from_right,
                        fkv_tvalue *out);

/* At most max times unless it is negative. */
fkv_status fkv_ts_replace(fkv_trun *run, fkv_tvalue v, fkv_tvalue old, fkv_tvalue by, int64_t max,
                          fkv_tvalue *out);

fkv_status fkv_ts_upper(fkv_trun *run, fkv_tvalue v, fkv_tvalue *out);
fkv_status fkv_ts_lower(fkv_trun *run, fkv_tvalue v, fkv_tvalue *out);

/* Where part stands first in v, in bytes, or -1. */
fkv_status fkv_ts_find(fkv_trun *run, fkv_tvalue v, fkv_tvalue part, int64_t *at);

/* n characters from start on, each step characters behind the one before, all of them inside. */
fkv_status fkv_ts_slice(fkv_trun *run, fkv_tvalue v, int64_t start, int64_t step, int64_t n, fkv_tvalue *out);

fkv_status fkv_ts_concat(fkv_trun *run, fkv_tvalue a, fkv_tvalue b, fkv_tvalue *out);
fkv_status fkv_ts_repeat(fkv_trun *run, fkv_tvalue v, int64_t times, fkv_tvalue *out);

/* As markupsafe.escape does it: Markup of a string whose & < > " ' are entities; Markup stays. */
fkv_status fkv_ts_escape(fkv_trun *run, fkv_tvalue v, fkv_tvalue *out);

#endif
