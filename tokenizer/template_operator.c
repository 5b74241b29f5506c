/* Operators of templates: see template_operator.h. */
#include "tokenizer/template_operator.h"

#include <math.h>
#include <string.h>

#include "tokenizer/template_string.h"

enum { RANGE_MAX = 100000 }; /* items of a range, as in Jinja's sandbox */

static const char *const signs[] = {
    "+", "-", "*", "/", "//", "%", "**", "==", "!=", "<", "<=", ">", ">=", "in", "not in"};

static fkv_status refuse(fkv_trun *run, fkv_top op, fkv_tvalue a, fkv_tvalue b)
{
    if (a.type == FKV_T_UNDEFINED || b.type == FKV_T_UNDEFINED)
        return fkv_trun_fail_undefined(run, a.type == FKV_T_UNDEFINED ? a : b);
    if (op == FKV_T_ADD && a.type == FKV_T_STRING)
        return fkv_trun_fail(run, "can only concatenate str (not \"%s\") to str", fkv_tv_type(b));
    if (op == FKV_T_MOD && a.type == FKV_T_STRING)
        return fkv_trun_fail(run, "%% does not format strings here: use + or ~");
    return fkv_trun_fail(run, "unsupported operand type(s) for %s: '%s' and '%s'", signs[op], fkv_tv_type(a),
                         fkv_tv_type(b));
}

static fkv_status overflow(fkv_trun *run, fkv_top op)
{
    return fkv_trun_fail(run, "%s: the result does not fit into 64 bits, where Python's integers would grow",
                         signs[op]);
}

static fkv_status by_zero(fkv_trun *run, fkv_top op)
{
    return fkv_trun_fail(run, "%s: division by zero", signs[op]);
}

/* a ** b for b not negative. False: it does not fit. */
static bool power(int64_t a, int64_t b, int64_t *out)
{
    int64_t r = 1;
    for (; b > 0; b >>= 1) {
        if (b & 1 && __builtin_mul_overflow(r, a, &r)) return false;
        if (b > 1 && __builtin_mul_overflow(a, a, &a)) return false;
    }
    *out = r;
    return true;
}

static fkv_status divide_ints(fkv_trun *run, fkv_top op, int64_t a, int64_t b, fkv_tvalue *out)
{
    if (b == 0) return by_zero(run, op);
    if (op == FKV_T_DIV) {
        *out = fkv_tv_float((double)((long double)a / (long double)b));
        return FKV_OK;
    }
    if (b == -1) { /* the only quotient that may not fit, and a trap for the processor */
        if (op == FKV_T_FLOORDIV && a == INT64_MIN) return overflow(run, op);
        *out = fkv_tv_int(op == FKV_T_MOD ? 0 : -a);
        return FKV_OK;
    }
    const int64_t r = a % b, down = r != 0 && (r < 0) != (b < 0);
    *out = fkv_tv_int(op == FKV_T_MOD ? r + down * b : a / b - down);
    return FKV_OK;
}

static fkv_status calculate_floats(fkv_trun *run, fkv_top op, double a, double b, fkv_tvalue *out)
{
    double r = 0;
    switch (op) {
    case FKV_T_ADD: r = a + b; break;
    case FKV_T_SUB: r = a - b; break;
    case FKV_T_MUL: r = a * b; break;
    case FKV_T_POW:
        if (a == 0 && b < 0) return by_zero(run, op);
        if (a < 0 && b != floor(b)) return fkv_trun_fail(run, "**: the result is a complex number");
        r = pow(a, b);
        if (isinf(r) && isfinite(a) && isfinite(b)) return fkv_trun_fail(run, "**: the result is too large");
        break;
    case FKV_T_DIV:
        if (b == 0) return by_zero(run, op);
        r = a / b;
        break;
    default: /* // and %: the remainder has the divisor's sign */
        if (b == 0) return by_zero(run, op);
        {
            double rest = fmod(a, b), whole = (a - rest) / b;
            if (rest != 0 && (b < 0) != (rest < 0)) {
                rest += b;
                whole -= 1;
            }
            if (rest == 0) rest = copysign(0, b);
            double down = floor(whole);
            if (whole - down > 0.5) down += 1;
            if (whole == 0) down = copysign(0, a / b);
            r = op == FKV_T_MOD ? rest : down;
        }
    }
    *out = fkv_tv_float(r);
    return FKV_OK;
}

static fkv_status calculate_ints(fkv_trun *run, fkv_top op, int64_t a, int64_t b, fkv_tvalue *out)
{
    int64_t r = 0;
    bool fits = true;
    switch (op) {
    case FKV_T_ADD: fits = !__builtin_add_overflow(a, b, &r); break;
    case FKV_T_SUB: fits = !__builtin_sub_overflow(a, b, &r); break;
    case FKV_T_MUL: fits = !__builtin_mul_overflow(a, b, &r); break;
    case FKV_T_POW:
        if (b < 0) return calculate_floats(run, op, (double)a, (double)b, out);
        fits = power(a, b, &r);
        break;
    default: return divide_ints(run, op, a, b, out);
    }
    if (!fits) return overflow(run, op);
    *out = fkv_tv_int(r);
    return FKV_OK;
}

static bool is_list(fkv_tvalue v)
{
    return v.type == FKV_T_LIST || v.type == FKV_T_TUPLE;
}

static fkv_status concat_lists(fkv_trun *run, fkv_tvalue a, fkv_tvalue b, fkv_tvalue *out)
{
    const size_t n = a.list->n + b.list->n;
    fkv_status st = fkv_trun_step(run, n * sizeof(fkv_tvalue));
    if (!st) st = fkv_tv_new_list(run, (fkv_ttype)a.type, n, out);
    for (size_t i = 0; !st && i < n; i++)
        st = fkv_tlist_push(run, out->list, i < a.list->n ? a.list->at[i] : b.list->at[i - a.list->n]);
    return st;
}

static fkv_status repeat_list(fkv_trun *run, fkv_tvalue v, int64_t times, fkv_tvalue *out)
{
    size_t n, bytes;
    if (times < 0) times = 0;
    if (__builtin_mul_overflow((size_t)times, v.list->n, &n) ||
        __builtin_mul_overflow(n, sizeof(fkv_tvalue), &bytes) || bytes > SIZE_MAX / 2)
        return fkv_trun_fail(run, "*: a list of too many items");
    fkv_status st = fkv_tv_new_list(run, (fkv_ttype)v.type, n, out);
    if (!st) st = fkv_trun_step(run, bytes);
    for (size_t i = 0; !st && i < n; i++) st = fkv_tlist_push(run, out->list, v.list->at[i % v.list->n]);
    return st;
}

fkv_status fkv_tv_calculate(fkv_trun *run, fkv_top op, fkv_tvalue a, fkv_tvalue b, fkv_tvalue *out)
{
    int64_t i, j;
    double x, y;
    const bool a_int = fkv_tv_as_int(a, &i), b_int = fkv_tv_as_int(b, &j);
    if (a_int && b_int) return calculate_ints(run, op, i, j, out);
    if (fkv_tv_as_float(a, &x) && fkv_tv_as_float(b, &y)) return calculate_floats(run, op, x, y, out);
    if (op == FKV_T_ADD && a.type == FKV_T_STRING && b.type == FKV_T_STRING)
        return fkv_ts_concat(run, a, b, out);
    if (op == FKV_T_ADD && is_list(a) && a.type == b.type) return concat_lists(run, a, b, out);
    if (op == FKV_T_MUL && a.type == FKV_T_STRING && b_int) return fkv_ts_repeat(run, a, j, out);
    if (op == FKV_T_MUL && b.type == FKV_T_STRING && a_int) return fkv_ts_repeat(run, b, i, out);
    if (op == FKV_T_MUL && is_list(a) && b_int) return repeat_list(run, a, j, out);
    if (op == FKV_T_MUL && is_list(b) && a_int) return repeat_list(run, b, i, out);
    return refuse(run, op, a, b);
}

fkv_status fkv_tv_negate(fkv_trun *run, fkv_tvalue v, fkv_tvalue *out)
{
    int64_t i;
    if (v.type == FKV_T_FLOAT) {
        *out = fkv_tv_float(-v.f);
        return FKV_OK;
    }
    if (fkv_tv_as_int(v, &i)) return calculate_ints(run, FKV_T_SUB, 0, i, out);
    if (v.type == FKV_T_UNDEFINED) return fkv_trun_fail_undefined(run, v);
    return fkv_trun_fail(run, "bad operand type for unary -: '%s'", fkv_tv_type(v));
}

/* a in b. */
static fkv_status contains(fkv_trun *run, fkv_tvalue b, fkv_tvalue a, bool *out)
{
    int64_t at;
    fkv_titer it;
    fkv_tvalue item;
    fkv_tentry *entry;
    bool more;
    fkv_status st;
    *out = false;
    if (b.type == FKV_T_STRING) {
        if (a.type != FKV_T_STRING)
            return fkv_trun_fail(run, "'in <string>' requires string as left operand, not %s",
                                 fkv_tv_type(a));
        st = fkv_ts_find(run, b, a, &at);
        *out = !st && at >= 0;
        return st;
    }
    if (b.type == FKV_T_DICT || (b.type == FKV_T_VIEW && b.flag == FKV_T_KEYS)) {
        st = fkv_tdict_get(run, b.dict, a, &entry);
        *out = !st && entry;
        return st;
    }
    if (!fkv_tv_iterable(b))
        return fkv_trun_fail(run, "argument of type '%s' is not iterable", fkv_tv_type(b));
    st = fkv_titer_start(run, b, &it);
    while (!st && !*out && !(st = fkv_titer_next(run, &it, &item, &more)) && more)
        st = fkv_tv_equal(run, item, a, out);
    return st;
}

fkv_status fkv_tv_compare(fkv_trun *run, fkv_top op, fkv_tvalue a, fkv_tvalue b, bool *out)
{
    int order = 0;
    fkv_status st;
    if (op == FKV_T_EQ || op == FKV_T_NE) {
        st = fkv_tv_equal(run, a, b, out);
        if (op == FKV_T_NE) *out = !*out;
        return st;
    }
    if (op == FKV_T_IN || op == FKV_T_NOT_IN) {
        st = contains(run, b, a, out);
        if (op == FKV_T_NOT_IN) *out = !*out;
        return st;
    }
    st = fkv_tv_order(run, a, b, signs[op], &order);
    *out = op == FKV_T_LT   ? order == -1
           : op == FKV_T_LE ? order == -1 || order == 0
           : op == FKV_T_GT ? order == 1
                            : order == 1 || order == 0;
    return st;
}

/* Character number i of a string. */
static fkv_status character(fkv_trun *run, fkv_tvalue of, int64_t i, fkv_tvalue *out)
{
    return fkv_ts_slice(run, of, i, 1, 1, out);
}

fkv_status fkv_tv_item(fkv_trun *run, fkv_tvalue of, fkv_tvalue key, fkv_tvalue *out, bool *found)
{
    int64_t i, n;
    fkv_tentry *entry = NULL;
    fkv_status st;
    *found = false;
    if (of.type == FKV_T_UNDEFINED) return fkv_trun_fail_undefined(run, of);
    if (of.type == FKV_T_DICT) {
        if (key.type == FKV_T_LIST || key.type == FKV_T_DICT || key.type == FKV_T_VIEW) return FKV_OK;
        st = fkv_tdict_get(run, of.dict, key, &entry);
        *found = !st && entry;
        if (*found) *out = entry->value;
        return st;
    }
    if (of.type != FKV_T_STRING && !is_list(of) && of.type != FKV_T_RANGE) return FKV_OK;
    if (!fkv_tv_as_int(key, &i)) return FKV_OK;
    st = fkv_tv_length(run, of, &n);
    if (st) return st;
    if (i < 0 && i >= -n) i += n;
    *found = i >= 0 && i < n;
    if (!*found) return FKV_OK;
    if (of.type == FKV_T_STRING) return character(run, of, i, out);
    *out = is_list(of) ? of.list->at[i] : fkv_tv_int(of.range->start + i * of.range->step);
    return FKV_OK;
}

void fkv_tv_clamp(int64_t length, int64_t *start, int64_t *stop)
{
    if (*start < 0) *start = *start < -length ? 0 : *start + length;
    if (*stop < 0) *stop = *stop < -length ? 0 : *stop + length;
    if (*stop > length) *stop = length;
}

/* A bound of a slice; lo and hi are what is clamped to, and fallback stands for None. */
static bool bound_of(fkv_tvalue v, int64_t length, int64_t lo, int64_t hi, int64_t fallback, int64_t *out)
{
    int64_t i;
    *out = fallback;
    if (v.type == FKV_T_NONE) return true;
    if (!fkv_tv_as_int(v, &i)) return false;
    if (i < 0) i = i < -length ? lo : i + length;
    *out = i < lo ? lo : i > hi ? hi : i;
    return true;
}

fkv_status fkv_tv_new_range(fkv_trun *run, int64_t start, int64_t stop, int64_t step, fkv_tvalue *out)
{
    uint64_t n = 0;
    if (step == 0) return fkv_trun_fail(run, "range() arg 3 must not be zero");
    if (step > 0 && start < stop) n = ((uint64_t)stop - (uint64_t)start - 1) / (uint64_t)step + 1;
    if (step < 0 && start > stop) n = ((uint64_t)start - (uint64_t)stop - 1) / (0 - (uint64_t)step) + 1;
    if (n > RANGE_MAX) return fkv_trun_fail(run, "a range of more than %d items", RANGE_MAX);
    fkv_trange *r = fkv_tarena_take(&run->arena, 1, sizeof *r);
    if (!r) return fkv_trun_no_room(run);
    *r = (fkv_trange){start, stop, step, (int64_t)n};
    *out = (fkv_tvalue){.type = FKV_T_RANGE, .range = r};
    return FKV_OK;
}

/* start and stop are items of the range, step goes over them. */
static fkv_status slice_range(fkv_trun *run, const fkv_trange *r, int64_t start, int64_t stop, int64_t step,
                              fkv_tvalue *out)
{
    if (__builtin_mul_overflow(start, r->step, &start) || __builtin_add_overflow(start, r->start, &start) ||
        __builtin_mul_overflow(stop, r->step, &stop) || __builtin_add_overflow(stop, r->start, &stop) ||
        __builtin_mul_overflow(step, r->step, &step))
        return fkv_trun_fail(run, "a range whose ends do not fit into 64 bits");
    return fkv_tv_new_range(run, start, stop, step, out);
}

static fkv_status wrong_bound(fkv_trun *run)
{
    return fkv_trun_fail(run, "slice indices must be integers or None");
}

fkv_status fkv_tv_slice(fkv_trun *run, fkv_tvalue of, const fkv_tvalue bounds[3], fkv_tvalue *out)
{
    int64_t n, start, stop, step = 1, count = 0;
    if (of.type == FKV_T_UNDEFINED) return fkv_trun_fail_undefined(run, of);
    if (of.type != FKV_T_STRING && !is_list(of) && of.type != FKV_T_RANGE)
        return fkv_trun_fail(run, "'%s' object can't be sliced", fkv_tv_type(of));
    fkv_status st = fkv_tv_length(run, of, &n);
    if (st) return st;
    if (bounds[2].type != FKV_T_NONE && !fkv_tv_as_int(bounds[2], &step)) return wrong_bound(run);
    if (step == 0) return fkv_trun_fail(run, "slice step cannot be zero");
    if (step < -INT64_MAX) step = -INT64_MAX;
    const int64_t lo = step < 0 ? -1 : 0, hi = step < 0 ? n - 1 : n;
    if (!bound_of(bounds[0], n, lo, hi, step < 0 ? hi : lo, &start)) return wrong_bound(run);
    if (!bound_of(bounds[1], n, lo, hi, step < 0 ? lo : hi, &stop)) return wrong_bound(run);
    if (step > 0 && start < stop) count = (stop - start - 1) / step + 1;
    if (step < 0 && start > stop) count = (start - stop - 1) / -step + 1;
    if (of.type == FKV_T_STRING) return fkv_ts_slice(run, of, count ? start : 0, step, count, out);
    if (of.type == FKV_T_RANGE) return slice_range(run, of.range, start, stop, step, out);
    st = fkv_trun_step(run, (size_t)count * sizeof(fkv_tvalue));
    if (!st) st = fkv_tv_new_list(run, (fkv_ttype)of.type, (size_t)count, out);
    for (int64_t i = 0; !st && i < count; i++)
        st = fkv_tlist_push(run, out->list, of.list->at[start + i * step]);
    return st;
}
