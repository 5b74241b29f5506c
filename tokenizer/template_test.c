/* Jinja's tests: see template_test.h. */
#include "tokenizer/template_test.h"

#include <string.h>

#include "tokenizer/template_operator.h"

/* Tests of a type: those that take no argument and can't fail. */
static bool is_defined(fkv_tvalue v)
{
    return v.type != FKV_T_UNDEFINED;
}

static bool is_undefined(fkv_tvalue v)
{
    return v.type == FKV_T_UNDEFINED;
}

static bool is_none(fkv_tvalue v)
{
    return v.type == FKV_T_NONE;
}

static bool is_boolean(fkv_tvalue v)
{
    return v.type == FKV_T_BOOL;
}

static bool is_true(fkv_tvalue v)
{
    return v.type == FKV_T_BOOL && v.b;
}

static bool is_false(fkv_tvalue v)
{
    return v.type == FKV_T_BOOL && !v.b;
}

static bool is_integer(fkv_tvalue v)
{
    return v.type == FKV_T_INT;
}

static bool is_float(fkv_tvalue v)
{
    return v.type == FKV_T_FLOAT;
}

static bool is_number(fkv_tvalue v)
{
    return v.type == FKV_T_BOOL || v.type == FKV_T_INT || v.type == FKV_T_FLOAT;
}

static bool is_string(fkv_tvalue v)
{
    return v.type == FKV_T_STRING;
}

static bool is_escaped(fkv_tvalue v)
{
    return v.type == FKV_T_STRING && v.flag;
}

static bool is_mapping(fkv_tvalue v)
{
    return v.type == FKV_T_DICT;
}

static bool is_sequence(fkv_tvalue v)
{
    return fkv_tv_iterable(v) && v.type != FKV_T_VIEW && v.type != FKV_T_STREAM;
}

static bool is_iterable(fkv_tvalue v)
{
    return fkv_tv_iterable(v) || v.type == FKV_T_LOOP;
}

/* Undefined too: what it says when it is called is another matter. */
static bool is_callable(fkv_tvalue v)
{
    return v.type == FKV_T_FUNCTION || v.type == FKV_T_METHOD || v.type == FKV_T_MACRO ||
           v.type == FKV_T_UNDEFINED;
}

static const struct {
    const char *name;
    bool (*is)(fkv_tvalue v);
} types[] = {
    {"defined", is_defined},   {"undefined", is_undefined}, {"none", is_none},
    {"boolean", is_boolean},   {"true", is_true},           {"false", is_false},
    {"integer", is_integer},   {"float", is_float},         {"number", is_number},
    {"string", is_string},     {"escaped", is_escaped},     {"mapping", is_mapping},
    {"sequence", is_sequence}, {"iterable", is_iterable},   {"callable", is_callable},
};

static const struct {
    const char *name;
    fkv_top op;
} comparisons[] = {
    {"==", FKV_T_EQ},       {"eq", FKV_T_EQ}, {"equalto", FKV_T_EQ}, {"!=", FKV_T_NE},
    {"ne", FKV_T_NE},       {">", FKV_T_GT},  {"gt", FKV_T_GT},      {"greaterthan", FKV_T_GT},
    {">=", FKV_T_GE},       {"ge", FKV_T_GE}, {"<", FKV_T_LT},       {"lt", FKV_T_LT},
    {"lessthan", FKV_T_LT}, {"<=", FKV_T_LE}, {"le", FKV_T_LE},      {"in", FKV_T_IN},
};

/* v % by == rest. */
static fkv_status leaves(fkv_trun *run, fkv_tvalue v, fkv_tvalue by, int64_t rest, bool *out)
{
    fkv_tvalue r;
    fkv_status st = fkv_tv_calculate(run, FKV_T_MOD, v, by, &r);
    return st ? st : fkv_tv_equal(run, r, fkv_tv_int(rest), out);
}

fkv_status fkv_tv_test(fkv_trun *run, fkv_tvalue name, fkv_tvalue v, const fkv_targs *args, bool *out)
{
    fkv_tvalue other;
    fkv_status st;
    *out = false;
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        if (!fkv_tv_is(name, types[i].name)) continue;
        *out = types[i].is(v);
        return fkv_targs_bind(run, args, types[i].name, "", 0, NULL);
    }
    for (size_t i = 0; i < sizeof comparisons / sizeof *comparisons; i++) {
        if (!fkv_tv_is(name, comparisons[i].name)) continue;
        st = fkv_targs_bind(run, args, comparisons[i].name, "other", 1, &other);
        return st ? st : fkv_tv_compare(run, comparisons[i].op, v, other, out);
    }
    if (fkv_tv_is(name, "odd") || fkv_tv_is(name, "even")) {
        st = fkv_targs_bind(run, args, "odd", "", 0, NULL);
        return st ? st : leaves(run, v, fkv_tv_int(2), fkv_tv_is(name, "odd"), out);
    }
    if (fkv_tv_is(name, "divisibleby")) {
        st = fkv_targs_bind(run, args, "divisibleby", "num", 1, &other);
        return st ? st : leaves(run, v, other, 0, out);
    }
    if (name.type != FKV_T_STRING)
        return fkv_trun_fail(run, "a test's name must be str, not %s", fkv_tv_type(name));
    return fkv_trun_fail(run, "there is no test '%.*s'", name.n < 60 ? (int)name.n : 60, name.s);
}
