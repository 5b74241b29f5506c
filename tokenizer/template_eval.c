/* Expressions of templates: see template_eval.h. */
#include "tokenizer/template_eval.h"

#include <string.h>

#include "tokenizer/template_filter.h"
#include "tokenizer/template_function.h"
#include "tokenizer/template_method.h"
#include "tokenizer/template_test.h"
#include "tokenizer/template_text.h"

fkv_status fkv_teval_enter(fkv_teval *e, const fkv_tnode *node)
{
    e->run.line = node->line;
    fkv_status st = fkv_trun_step(&e->run, 0);
    if (st) return st;
    if (e->run.depth >= FKV_TEMPLATE_STACK)
        return fkv_trun_fail(&e->run, "it is nested more than %d deep", FKV_TEMPLATE_STACK);
    e->run.depth++;
    return FKV_OK;
}

void fkv_teval_leave(fkv_teval *e)
{
    e->run.depth--;
}

fkv_status fkv_tscope_new(fkv_teval *e, fkv_tscope *outer, fkv_tscope **out)
{
    *out = fkv_tarena_take(&e->run.arena, 1, sizeof **out);
    if (!*out) return fkv_trun_no_room(&e->run);
    (*out)->outer = outer;
    return FKV_OK;
}

static fkv_status find(fkv_teval *e, const fkv_tscope *scope, int name, fkv_tvariable **out)
{
    *out = NULL;
    for (size_t i = 0; i < scope->n && !*out; i++)
        if (scope->at[i].name == name) *out = &scope->at[i];
    return fkv_trun_step(&e->run, scope->n * sizeof *scope->at);
}

fkv_status fkv_tscope_set(fkv_teval *e, fkv_tscope *scope, int name, fkv_tvalue v)
{
    fkv_tvariable *found;
    fkv_status st = find(e, scope, name, &found);
    if (st) return st;
    if (!found) {
        if (scope->n == scope->cap) {
            const size_t cap = scope->cap ? scope->cap * 2 : 4;
            fkv_tvariable *at = fkv_tarena_take(&e->run.arena, cap, sizeof *at);
            if (!at) return fkv_trun_no_room(&e->run);
            if (scope->n) memcpy(at, scope->at, scope->n * sizeof *at);
            scope->at = at;
            scope->cap = cap;
        }
        found = &scope->at[scope->n++];
        found->name = name;
    }
    found->value = v;
    return FKV_OK;
}

fkv_status fkv_teval_name(fkv_teval *e, int name, fkv_tvalue *out)
{
    *out = e->globals[name];
    for (const fkv_tscope *scope = e->scope; scope; scope = scope->outer) {
        fkv_tvariable *found;
        fkv_status st = find(e, scope, name, &found);
        if (st) return st;
        if (found) {
            *out = found->value;
            return FKV_OK;
        }
    }
    return FKV_OK;
}

static fkv_status eval_list(fkv_teval *e, const fkv_tnode *node, fkv_tvalue *out)
{
    fkv_tvalue item;
    fkv_status st = fkv_tv_new_list(&e->run, node->kind == FKV_N_LIST ? FKV_T_LIST : FKV_T_TUPLE, 0, out);
    for (const fkv_tnode *n = node->list; !st && n; n = n->next) {
        st = fkv_teval_value(e, n, &item);
        if (!st) st = fkv_tlist_push(&e->run, out->list, item);
    }
    return st;
}

static fkv_status eval_dict(fkv_teval *e, const fkv_tnode *node, fkv_tvalue *out)
{
    fkv_tvalue key, value;
    fkv_status st = fkv_tv_new_dict(&e->run, FKV_T_DICT, out);
    for (const fkv_tnode *n = node->list; !st && n; n = n->next) {
        st = fkv_teval_value(e, n->a, &key);
        if (!st) st = fkv_teval_value(e, n->b, &value);
        if (!st) st = fkv_tdict_set(&e->run, out->dict, key, value);
    }
    return st;
}

/* and, or: the operand that decides. */
static fkv_status eval_logic(fkv_teval *e, const fkv_tnode *node, fkv_tvalue *out)
{
    fkv_status st = FKV_OK;
    for (const fkv_tnode *n = node->list; !st && n; n = n->next) {
        st = fkv_teval_value(e, n, out);
        if (!st && fkv_tv_truth(*out) == (node->kind == FKV_N_OR)) break;
    }
    return st;
}

static fkv_status eval_chain(fkv_teval *e, const fkv_tnode *node, fkv_tvalue *out)
{
    fkv_tvalue right;
    fkv_status st = fkv_teval_value(e, node->a, out);
    for (const fkv_tnode *n = node->list; !st && n; n = n->next) {
        st = fkv_teval_value(e, n->a, &right);
        if (!st) st = fkv_tv_calculate(&e->run, (fkv_top)n->op, *out, right, out);
    }
    return st;
}

static fkv_status eval_compare(fkv_teval *e, const fkv_tnode *node, fkv_tvalue *out)
{
    fkv_tvalue left, right;
    bool yes = true;
    fkv_status st = fkv_teval_value(e, node->a, &left);
    for (const fkv_tnode *n = node->list; !st && yes && n; n = n->next) {
        st = fkv_teval_value(e, n->a, &right);
        if (!st) st = fkv_tv_compare(&e->run, (fkv_top)n->op, left, right, &yes);
        left = right;
    }
    *out = fkv_tv_bool(yes);
    return st;
}

static fkv_status eval_concat(fkv_teval *e, const fkv_tnode *node, fkv_tvalue *out)
{
    fkv_buf text = {0};
    fkv_tvalue v;
    fkv_status st = FKV_OK;
    for (const fkv_tnode *n = node->list; !st && n; n = n->next) {
        st = fkv_teval_value(e, n, &v);
        if (!st) st = fkv_tv_print(&e->run, v, &text);
    }
    if (!st) st = fkv_tv_take(&e->run, &text, out);
    fkv_buf_free(&text);
    return st;
}

static fkv_status eval_cond(fkv_teval *e, const fkv_tnode *node, fkv_tvalue *out)
{
    fkv_status st = fkv_teval_value(e, node->b, out);
    if (st) return st;
    if (fkv_tv_truth(*out)) return fkv_teval_value(e, node->a, out);
    if (node->c) return fkv_teval_value(e, node->c, out);
    *out = fkv_tv_undefined("the inline if-expression evaluated to false and no else section was defined.");
    return FKV_OK;
}

static fkv_status eval_args(fkv_teval *e, const fkv_tnode *list, bool with_caller, fkv_targs *out)
{
    size_t n = 0, n_named = with_caller;
    *out = (fkv_targs){0};
    for (const fkv_tnode *a = list; a; a = a->next) *(a->flag ? &n_named : &n) += 1;
    out->at = n ? fkv_tarena_take(&e->run.arena, n, sizeof *out->at) : NULL;
    out->named = n_named ? fkv_tarena_take(&e->run.arena, n_named, sizeof *out->named) : NULL;
    if ((n && !out->at) || (n_named && !out->named)) return fkv_trun_no_room(&e->run);
    for (const fkv_tnode *a = list; a; a = a->next) {
        fkv_tvalue v;
        fkv_status st = fkv_teval_value(e, a->a, &v);
        if (st) return st;
        if (a->flag)
            out->named[out->n_named++] = (fkv_tentry){a->value, v};
        else
            out->at[out->n++] = v;
    }
    if (with_caller) out->named[out->n_named++] = (fkv_tentry){fkv_tv_text("caller"), e->caller};
    return FKV_OK;
}

static fkv_status call(fkv_teval *e, const fkv_tnode *step, fkv_tvalue callee, fkv_tvalue *out)
{
    fkv_targs args;
    fkv_status st = eval_args(e, step->list, step->flag, &args);
    if (st) return st;
    e->run.line = step->line;
    switch (callee.type) {
    case FKV_T_FUNCTION: return fkv_tv_call_function(&e->run, callee, e->day, &args, out);
    case FKV_T_METHOD: return fkv_tv_call_method(&e->run, callee, &args, out);
    case FKV_T_MACRO: return e->call_macro(e, callee.p, &args, out);
    case FKV_T_UNDEFINED: return fkv_trun_fail_undefined(&e->run, callee);
    default: return fkv_trun_fail(&e->run, "'%s' object is not callable", fkv_tv_type(callee));
    }
}

static fkv_status slice(fkv_teval *e, const fkv_tnode *step, fkv_tvalue of, fkv_tvalue *out)
{
    const fkv_tnode *nodes[] = {step->a, step->b, step->c};
    fkv_tvalue bounds[3];
    fkv_status st = FKV_OK;
    for (int i = 0; !st && i < 3; i++) {
        bounds[i] = fkv_tv_none();
        if (nodes[i]) st = fkv_teval_value(e, nodes[i], &bounds[i]);
    }
    return st ? st : fkv_tv_slice(&e->run, of, bounds, out);
}

static fkv_status test(fkv_teval *e, const fkv_tnode *step, fkv_tvalue v, fkv_tvalue *out)
{
    fkv_targs args;
    bool yes;
    fkv_status st = eval_args(e, step->list, false, &args);
    if (!st) st = fkv_tv_test(&e->run, step->value, v, &args, &yes);
    if (!st) *out = fkv_tv_bool(yes != step->flag);
    return st;
}

static fkv_status filter(fkv_teval *e, const fkv_tnode *step, fkv_tvalue v, fkv_tvalue *out)
{
    fkv_targs args;
    fkv_status st = eval_args(e, step->list, false, &args);
    return st ? st : fkv_tv_filter(&e->run, step->value, v, &args, out);
}

fkv_status fkv_teval_filters(fkv_teval *e, const fkv_tnode *list, fkv_tvalue v, fkv_tvalue *out)
{
    fkv_status st = FKV_OK;
    *out = v;
    for (; !st && list; list = list->next) st = filter(e, list, *out, out);
    return st;
}

static fkv_status eval_postfix(fkv_teval *e, const fkv_tnode *node, fkv_tvalue *out)
{
    fkv_tvalue v, key;
    fkv_status st = fkv_teval_value(e, node->a, &v);
    for (const fkv_tnode *step = node->list; !st && step; step = step->next) {
        const fkv_tvalue of = v;
        e->run.line = step->line;
        st = fkv_trun_step(&e->run, 0);
        if (st) break;
        switch (step->kind) {
        case FKV_N_ATTR:
            st = of.type == FKV_T_LOOP ? e->loop_member(e, of.p, step->value, &v)
                                       : fkv_tv_attribute(&e->run, of, step->value, &v);
            break;
        case FKV_N_ITEM:
            st = fkv_teval_value(e, step->a, &key);
            if (!st && of.type == FKV_T_LOOP && key.type == FKV_T_STRING)
                st = e->loop_member(e, of.p, key, &v);
            else if (!st)
                st = fkv_tv_subscript(&e->run, of, key, &v);
            break;
        case FKV_N_SLICE: st = slice(e, step, of, &v); break;
        case FKV_N_CALL: st = call(e, step, of, &v); break;
        case FKV_N_FILTER: st = filter(e, step, of, &v); break;
        default: st = test(e, step, of, &v);
        }
    }
    *out = v;
    return st;
}

/* -v, +v, not v. */
static fkv_status eval_unary(fkv_teval *e, const fkv_tnode *node, fkv_tvalue *out)
{
    fkv_tvalue v;
    fkv_status st = fkv_teval_value(e, node->a, &v);
    if (st) return st;
    if (node->kind == FKV_N_NEGATE && !node->flag) return fkv_tv_negate(&e->run, v, out);
    if (node->kind == FKV_N_NEGATE) return fkv_tv_calculate(&e->run, FKV_T_ADD, fkv_tv_int(0), v, out);
    *out = fkv_tv_bool(!fkv_tv_truth(v));
    return FKV_OK;
}

fkv_status fkv_teval_value(fkv_teval *e, const fkv_tnode *node, fkv_tvalue *out)
{
    fkv_status st = fkv_teval_enter(e, node);
    if (st) return st;
    switch (node->kind) {
    case FKV_N_CONST: *out = node->value; break;
    case FKV_N_NAME: st = fkv_teval_name(e, node->name, out); break;
    case FKV_N_LIST:
    case FKV_N_TUPLE: st = eval_list(e, node, out); break;
    case FKV_N_DICT: st = eval_dict(e, node, out); break;
    case FKV_N_OR:
    case FKV_N_AND: st = eval_logic(e, node, out); break;
    case FKV_N_NOT:
    case FKV_N_NEGATE: st = eval_unary(e, node, out); break;
    case FKV_N_CHAIN: st = eval_chain(e, node, out); break;
    case FKV_N_COMPARE: st = eval_compare(e, node, out); break;
    case FKV_N_CONCAT: st = eval_concat(e, node, out); break;
    case FKV_N_COND: st = eval_cond(e, node, out); break;
    default: st = eval_postfix(e, node, out);
    }
    fkv_teval_leave(e);
    return st;
}
