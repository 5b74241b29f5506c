/* Operators of templates with Python's meaning: arithmetic, comparisons, in, subscripts, slices.
 * Integers have 64 bits, and what does not fit is an error; % does not format strings. */
#ifndef FKV_TEMPLATE_OPERATOR_H
#define FKV_TEMPLATE_OPERATOR_H

#include "tokenizer/template_value.h"

typedef enum fkv_top {
    FKV_T_ADD,
    FKV_T_SUB,
    FKV_T_MUL,
    FKV_T_DIV,
    FKV_T_FLOORDIV,
    FKV_T_MOD,
    FKV_T_POW,
    FKV_T_EQ,
    FKV_T_NE,
    FKV_T_LT,
    FKV_T_LE,
    FKV_T_GT,
    FKV_T_GE,
    FKV_T_IN,
    FKV_T_NOT_IN,
} fkv_top;

/* ADD to POW. */
fkv_status fkv_tv_calculate(fkv_trun *run, fkv_top op, fkv_tvalue a, fkv_tvalue b, fkv_tvalue *out);
fkv_status fkv_tv_negate(fkv_trun *run, fkv_tvalue v, fkv_tvalue *out);
/* EQ to NOT_IN. */
fkv_status fkv_tv_compare(fkv_trun *run, fkv_top op, fkv_tvalue a, fkv_tvalue b, bool *out);

/* of[key] where Python has it; *found is false where that is a TypeError or a LookupError. */
fkv_status fkv_tv_item(fkv_trun *run, fkv_tvalue of, fkv_tvalue key, fkv_tvalue *out, bool *found);
/* of[start:stop:step]; None for what is not given. */
fkv_status fkv_tv_slice(fkv_trun *run, fkv_tvalue of, const fkv_tvalue bounds[3], fkv_tvalue *out);
/* The start and end of [start:stop] in something of this length, clamped as Python does it. */
void fkv_tv_clamp(int64_t length, int64_t *start, int64_t *stop);

/* range(start, stop, step). */
fkv_status fkv_tv_new_range(fkv_trun *run, int64_t start, int64_t stop, int64_t step, fkv_tvalue *out);

#endif
