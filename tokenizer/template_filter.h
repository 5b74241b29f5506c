/* Jinja's filters: what stands behind "|", and what map calls by name. tojson is HF's: nothing is
 * escaped for HTML, and characters stand as they are. */
#ifndef FKV_TEMPLATE_FILTER_H
#define FKV_TEMPLATE_FILTER_H

#include "tokenizer/template_value.h"

/* v | name(args). A name that there is not is an error. */
fkv_status fkv_tv_filter(fkv_trun *run, fkv_tvalue name, fkv_tvalue v, const fkv_targs *args,
                         fkv_tvalue *out);

#endif
