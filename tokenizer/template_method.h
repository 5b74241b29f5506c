/* Attributes, subscripts and methods of values, as Jinja's sandbox gives them: what a value may
 * change is refused, other methods that are not supported are errors when they are called. Not
 * for: attributes of a loop (template_run.c). */
#ifndef FKV_TEMPLATE_METHOD_H
#define FKV_TEMPLATE_METHOD_H

#include "tokenizer/template_value.h"

/* of.name: a method or a member before an item of that name. Undefined where there is neither. */
fkv_status fkv_tv_attribute(fkv_trun *run, fkv_tvalue of, fkv_tvalue name, fkv_tvalue *out);
/* of[key]: an item before a method or a member. */
fkv_status fkv_tv_subscript(fkv_trun *run, fkv_tvalue of, fkv_tvalue key, fkv_tvalue *out);

fkv_status fkv_tv_call_method(fkv_trun *run, fkv_tvalue method, const fkv_targs *args, fkv_tvalue *out);

#endif
