/* Jinja's tests: what stands behind "is", and what select and reject call by name. Not for: tests
 * of this program (tests/). */
#ifndef FKV_TEMPLATE_TEST_H
#define FKV_TEMPLATE_TEST_H

#include "tokenizer/template_value.h"

/* v is name(args). A name that there is not is an error. */
fkv_status fkv_tv_test(fkv_trun *run, fkv_tvalue name, fkv_tvalue v, const fkv_targs *args, bool *out);

#endif
