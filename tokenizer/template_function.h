/* The functions that every template has: range, namespace, dict, raise_exception and
 * strftime_now. */
#ifndef FKV_TEMPLATE_FUNCTION_H
#define FKV_TEMPLATE_FUNCTION_H

#include <time.h>

#include "tokenizer/template_value.h"

/* The function of that name; *found is false where there is none. */
fkv_tvalue fkv_tv_function(fkv_tvalue name, bool *found);

/* day is what strftime_now prints, NULL where there is none. raise_exception fails with the
 * template's own words and nothing before them. */
fkv_status fkv_tv_call_function(fkv_trun *run, fkv_tvalue function, const struct tm *day,
                                const fkv_targs *args, fkv_tvalue *out);

#endif
