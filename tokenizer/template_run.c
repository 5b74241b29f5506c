/* Statements of templates: see template_run.h. */
#include "tokenizer/template_run.h"

#include <string.h>

#include "tokenizer/template_text.h"

typedef struct macro {
    const fkv_tnode *node; /* MACRO or CALLED */
    fkv_tscope *scope;     /* where it was defined */
} macro;

/* A for loop under way. It lives in the arena, since a template may keep "loop". */
typedef struct loop {
    const fkv_tnode *node;
    fkv_tscope *around, *test; /* test: of the condition */
    fkv_titer it;
    int64_t index0, length; /* length: -1 until it was asked for */
    fkv_tvalue before, now, after;
    bool filters;   /* the condition is still to be asked */
    bool has_after; /* after was read ahead */
    bool at_end;    /* there was none */
} loop;

static fkv_status run_list(fkv_teval *e, const fkv_tnode *list);

static fkv_status assign(fkv_teval *e, fkv_tscope *scope, const fkv_tnode *target, fkv_tvalue v);

/* a, b = v */
static fkv_status unpack(fkv_teval *e, fkv_tscope *scope, const fkv_tnode *target, fkv_tvalue v)
{
    fkv_titer it;
    fkv_tvalue item;
    bool more = true;
    fkv_status st = fkv_titer_start(&e->run, v, &it);
    for (const fkv_tnode *n = target->list; !st && n; n = n->next) {
        st = fkv_titer_next(&e->run, &it, &item, &more);
        if (!st && !more) st = fkv_trun_fail(&e->run, "not enough values to unpack");
        if (!st) st = assign(e, scope, n, item);
    }
    if (!st) st = fkv_titer_next(&e->run, &it, &item, &more);
    if (!st && more) st = fkv_trun_fail(&e->run, "too many values to unpack");
    return st;
}

static fkv_status assign(fkv_teval *e, fkv_tscope *scope, const fkv_tnode *target, fkv_tvalue v)
{
    fkv_tvalue of;
    fkv_status st;
    if (target->kind == FKV_N_NAME) return fkv_tscope_set(e, scope, target->name, v);
    if (target->kind == FKV_N_TUPLE) return unpack(e, scope, target, v);
    st = fkv_teval_name(e, target->name, &of);
    if (st) return st;
    if (of.type != FKV_T_NAMESPACE)
        return fkv_trun_fail(&e->run, "cannot assign attribute on non-namespace object");
    if (target->value.n && target->value.s[0] == '_')
        return fkv_trun_fail(&e->run, "a namespace's member may not start with '_'");
    return fkv_tdict_set(&e->run, of.dict, target->value, v);
}

/* Runs a body in a scope of its own; text goes to out. */
static fkv_status run_inside(fkv_teval *e, const fkv_tnode *body, fkv_tscope *scope, fkv_buf *out)
{
    fkv_tscope *outer = e->scope;
    fkv_buf *before = e->out;
    e->scope = scope;
    e->out = out;
    fkv_status st = run_list(e, body);
    e->scope = outer;
    e->out = before;
    return st;
}

/* The text of a body, run in the scope, as a value. */
static fkv_status capture(fkv_teval *e, const fkv_tnode *body, fkv_tscope *scope, fkv_tvalue *out)
{
    fkv_buf text = {0};
    fkv_status st = run_inside(e, body, scope, &text);
    if (!st) st = fkv_tv_take(&e->run, &text, out);
    fkv_buf_free(&text);
    return st;
}

static fkv_status run_if(fkv_teval *e, const fkv_tnode *node)
{
    for (const fkv_tnode *branch = node->list; branch; branch = branch->next) {
        fkv_tvalue v = fkv_tv_bool(true);
        fkv_status st = branch->a ? fkv_teval_value(e, branch->a, &v) : FKV_OK;
        if (st) return st;
        if (fkv_tv_truth(v)) return run_list(e, branch->list);
    }
    return FKV_OK;
}

/* Whether the loop's condition holds for the item. */
static fkv_status passes(fkv_teval *e, loop *l, fkv_tvalue item, bool *yes)
{
    fkv_tvalue v = {0};
    fkv_tscope *scope = e->scope;
    if (!l->test || l->test->kept) {
        fkv_status st = fkv_tscope_new(e, l->around, &l->test);
        if (st) return st;
    }
    l->test->n = 0;
    fkv_status st = assign(e, l->test, l->node->a, item);
    e->scope = l->test;
    if (!st) st = fkv_teval_value(e, l->node->c, &v);
    e->scope = scope;
    *yes = !st && fkv_tv_truth(v);
    return st;
}

/* The next item that the loop takes. */
static fkv_status pull(fkv_teval *e, loop *l, fkv_tvalue *item, bool *more)
{
    bool yes = false;
    fkv_status st = FKV_OK;
    *more = true;
    while (!st && *more && !yes) {
        st = fkv_titer_next(&e->run, &l->it, item, more);
        yes = true;
        if (!st && *more && l->filters) st = passes(e, l, *item, &yes);
    }
    return st;
}

/* Looks at the item behind the present one. */
static fkv_status peek(fkv_teval *e, loop *l)
{
    bool more;
    if (l->has_after || l->at_end) return FKV_OK;
    fkv_status st = pull(e, l, &l->after, &more);
    l->has_after = !st && more;
    l->at_end = !st && !more;
    return st;
}

/* What has no length is read to its end. */
static fkv_status measure(fkv_teval *e, loop *l)
{
    fkv_tvalue rest, item;
    bool more;
    fkv_status st = FKV_OK;
    if (l->length >= 0) return FKV_OK;
    if (!l->filters) st = fkv_tv_length(&e->run, l->it.of, &l->length);
    if (st || l->length >= 0) return st;
    st = fkv_tv_new_list(&e->run, FKV_T_LIST, 0, &rest);
    while (!st && !(st = pull(e, l, &item, &more)) && more) st = fkv_tlist_push(&e->run, rest.list, item);
    if (st) return st;
    l->it = (fkv_titer){.of = rest};
    l->filters = false;
    l->length = (int64_t)rest.list->n + l->index0 + 1 + l->has_after;
    return FKV_OK;
}

static fkv_status loop_member(fkv_teval *e, void *of, fkv_tvalue name, fkv_tvalue *out)
{
    loop *l = of;
    const bool last = fkv_tv_is(name, "last"), next = fkv_tv_is(name, "nextitem");
    const bool from_end = fkv_tv_is(name, "revindex"), from_end0 = fkv_tv_is(name, "revindex0");
    fkv_status st = FKV_OK;
    if (last || next) st = peek(e, l);
    if (from_end || from_end0 || fkv_tv_is(name, "length")) st = measure(e, l);
    if (st) return st;
    if (last)
        *out = fkv_tv_bool(!l->has_after);
    else if (next)
        *out = l->has_after ? l->after : fkv_tv_undefined("there is no next item");
    else if (from_end || from_end0)
        *out = fkv_tv_int(l->length - l->index0 - from_end0);
    else if (fkv_tv_is(name, "length"))
        *out = fkv_tv_int(l->length);
    else if (fkv_tv_is(name, "index"))
        *out = fkv_tv_int(l->index0 + 1);
    else if (fkv_tv_is(name, "index0"))
        *out = fkv_tv_int(l->index0);
    else if (fkv_tv_is(name, "first"))
        *out = fkv_tv_bool(l->index0 == 0);
    else if (fkv_tv_is(name, "previtem"))
        *out = l->index0 ? l->before : fkv_tv_undefined("there is no previous item");
    else if (fkv_tv_is(name, "depth") || fkv_tv_is(name, "depth0"))
        *out = fkv_tv_int(fkv_tv_is(name, "depth"));
    else
        *out = fkv_tv_missing((fkv_tvalue){.type = FKV_T_LOOP}, name);
    return FKV_OK;
}

/* Goes to the next item. */
static fkv_status advance(fkv_teval *e, loop *l, bool *more)
{
    fkv_tvalue item;
    fkv_status st = FKV_OK;
    *more = l->has_after;
    if (l->has_after)
        item = l->after;
    else if (!l->at_end)
        st = pull(e, l, &item, more);
    if (st || !*more) return st;
    l->has_after = false;
    l->before = l->now;
    l->now = item;
    l->index0++;
    return FKV_OK;
}

static fkv_status run_else(fkv_teval *e, const fkv_tnode *body)
{
    fkv_tscope *scope;
    fkv_status st = fkv_tscope_new(e, e->scope, &scope);
    return st ? st : run_inside(e, body, scope, e->out);
}

/* As in Jinja, a loop whose body never came to its end has its else run, break and continue or not. */
static fkv_status run_for(fkv_teval *e, const fkv_tnode *node)
{
    fkv_tvalue of;
    fkv_tscope *scope = NULL;
    bool more = true, ran = false;
    fkv_status st = fkv_teval_value(e, node->b, &of);
    if (st) return st;
    loop *l = fkv_tarena_take(&e->run.arena, 1, sizeof *l);
    if (!l) return fkv_trun_no_room(&e->run);
    *l = (loop){.node = node, .around = e->scope, .index0 = -1, .length = -1, .filters = node->c != NULL};
    st = fkv_titer_start(&e->run, of, &l->it);
    while (!st && !(st = advance(e, l, &more)) && more) {
        if (!scope || scope->kept) st = fkv_tscope_new(e, e->scope, &scope);
        if (st) break;
        scope->n = 0;
        st = fkv_tscope_set(e, scope, FKV_T_NAME_LOOP, (fkv_tvalue){.type = FKV_T_LOOP, .p = l});
        e->run.line = node->line;
        if (!st) st = assign(e, scope, node->a, l->now);
        if (!st) st = run_inside(e, node->list, scope, e->out);
        const fkv_tjump jump = e->jump;
        e->jump = FKV_T_GO_ON;
        if (jump == FKV_T_BREAK) break;
        ran |= jump == FKV_T_GO_ON;
    }
    return st || ran ? st : run_else(e, node->other);
}

/* {% set x %}body{% endset %}, {% filter f %}body{% endfilter %}. */
static fkv_status run_captured(fkv_teval *e, const fkv_tnode *node)
{
    fkv_tscope *scope;
    fkv_tvalue v;
    fkv_status st = fkv_tscope_new(e, e->scope, &scope);
    if (!st) st = capture(e, node->list, scope, &v);
    if (st || e->jump) return st; /* left by break */
    st = fkv_teval_filters(e, node->other, v, &v);
    if (st) return st;
    return node->kind == FKV_N_CAPTURE ? assign(e, e->scope, node->a, v) : fkv_tv_print(&e->run, v, e->out);
}

static fkv_status new_macro(fkv_teval *e, const fkv_tnode *node, fkv_tvalue *out)
{
    macro *m = fkv_tarena_take(&e->run.arena, 1, sizeof *m);
    if (!m) return fkv_trun_no_room(&e->run);
    *m = (macro){node, e->scope};
    for (fkv_tscope *s = e->scope; s && !s->kept; s = s->outer) s->kept = true;
    *out = (fkv_tvalue){.type = FKV_T_MACRO, .p = m};
    return FKV_OK;
}

/* The argument that is called by a parameter's name; taken counts those that were asked for. */
static const fkv_tentry *named_argument(const fkv_targs *args, fkv_tvalue name, size_t *taken)
{
    for (size_t i = 0; i < args->n_named; i++) {
        const fkv_tvalue key = args->named[i].key;
        if (key.n != name.n || memcmp(key.s, name.s, key.n) != 0) continue;
        ++*taken;
        return &args->named[i];
    }
    return NULL;
}

/* Gives the parameters their values in the macro's scope, in which defaults are evaluated. */
static fkv_status bind_params(fkv_teval *e, const fkv_tnode *params, const fkv_targs *args)
{
    size_t at = 0, taken = 0;
    fkv_status st = FKV_OK;
    bool caller = false;
    for (const fkv_tnode *p = params; !st && p; p = p->next, at++) {
        const fkv_tentry *named = at < args->n ? NULL : named_argument(args, p->value, &taken);
        fkv_tvalue v = fkv_tv_undefined("a parameter of the macro was not provided");
        if (at < args->n)
            v = args->at[at];
        else if (named)
            v = named->value;
        else if (p->a)
            st = fkv_teval_value(e, p->a, &v);
        caller |= p->name == FKV_T_NAME_CALLER;
        if (!st) st = fkv_tscope_set(e, e->scope, p->name, v);
    }
    if (st) return st;
    const fkv_tentry *body = caller ? NULL : named_argument(args, fkv_tv_text("caller"), &taken);
    if (body) st = fkv_tscope_set(e, e->scope, FKV_T_NAME_CALLER, body->value);
    if (!st && args->n > at) st = fkv_trun_fail(&e->run, "a macro takes not more than %zu argument(s)", at);
    if (!st && args->n_named > taken)
        st = fkv_trun_fail(&e->run, "a macro got an argument that it has no parameter for");
    return st;
}

static fkv_status call_macro(fkv_teval *e, void *called, const fkv_targs *args, fkv_tvalue *out)
{
    const macro *m = called;
    fkv_tscope *outer = e->scope, *scope;
    if (e->calls >= FKV_TEMPLATE_DEPTH)
        return fkv_trun_fail(&e->run, "macros call each other more than %d deep", FKV_TEMPLATE_DEPTH);
    fkv_status st = fkv_tscope_new(e, m->scope, &scope);
    if (st) return st;
    e->calls++;
    e->scope = scope;
    st = bind_params(e, m->node->other, args);
    if (!st) st = capture(e, m->node->list, scope, out);
    e->scope = outer;
    e->calls--;
    return st;
}

/* {% call m() %}body{% endcall %}: m is called, and calls the body as caller(). */
static fkv_status run_called(fkv_teval *e, const fkv_tnode *node)
{
    fkv_tvalue v;
    const fkv_tvalue before = e->caller;
    fkv_status st = new_macro(e, node, &e->caller);
    if (!st) st = fkv_teval_value(e, node->a, &v);
    e->caller = before;
    return st ? st : fkv_tv_print(&e->run, v, e->out);
}

static fkv_status run_with(fkv_teval *e, const fkv_tnode *node)
{
    fkv_tscope *scope;
    fkv_tvalue v;
    fkv_status st = fkv_tscope_new(e, e->scope, &scope);
    for (const fkv_tnode *n = node->other; !st && n; n = n->next) {
        st = fkv_teval_value(e, n->b, &v); /* outside, as all its values */
        if (!st) st = assign(e, scope, n->a, v);
    }
    return st ? st : run_inside(e, node->list, scope, e->out);
}

static fkv_status run_output(fkv_teval *e, const fkv_tnode *node)
{
    fkv_tvalue v;
    fkv_status st = fkv_teval_value(e, node->a, &v);
    return st ? st : fkv_tv_print(&e->run, v, e->out);
}

static fkv_status run_set(fkv_teval *e, const fkv_tnode *node)
{
    fkv_tvalue v;
    fkv_status st = fkv_teval_value(e, node->b, &v);
    return st ? st : assign(e, e->scope, node->a, v);
}

static fkv_status run_macro(fkv_teval *e, const fkv_tnode *node)
{
    fkv_tvalue v = {0};
    fkv_status st = new_macro(e, node, &v);
    return st ? st : fkv_tscope_set(e, e->scope, node->name, v);
}

static fkv_status run_statement(fkv_teval *e, const fkv_tnode *node)
{
    switch (node->kind) {
    case FKV_N_DATA: return fkv_trun_put(&e->run, e->out, node->value.s, node->value.n);
    case FKV_N_OUTPUT: return run_output(e, node);
    case FKV_N_IF: return run_if(e, node);
    case FKV_N_FOR: return run_for(e, node);
    case FKV_N_SET: return run_set(e, node);
    case FKV_N_CAPTURE:
    case FKV_N_FILTERED: return run_captured(e, node);
    case FKV_N_MACRO: return run_macro(e, node);
    case FKV_N_CALLED: return run_called(e, node);
    case FKV_N_WITH: return run_with(e, node);
    default: e->jump = node->kind == FKV_N_BREAK ? FKV_T_BREAK : FKV_T_CONTINUE; return FKV_OK;
    }
}

static fkv_status run_list(fkv_teval *e, const fkv_tnode *list)
{
    fkv_status st = FKV_OK;
    for (; !st && !e->jump && list; list = list->next) {
        st = fkv_teval_enter(e, list);
        if (!st) st = run_statement(e, list);
        fkv_teval_leave(e);
    }
    return st;
}

fkv_status fkv_teval_run(fkv_teval *e, const fkv_tnode *body)
{
    e->call_macro = call_macro;
    e->loop_member = loop_member;
    e->jump = FKV_T_GO_ON;
    fkv_status st = fkv_tscope_new(e, NULL, &e->scope);
    return st ? st : run_list(e, body);
}
