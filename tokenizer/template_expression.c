/* The parser of expressions, by Jinja's grammar: see template_expression.h. */
#include "tokenizer/template_expression.h"

#include <string.h>

typedef fkv_status parse_function(fkv_tparser *p, fkv_tnode **out);

static fkv_status parse_or(fkv_tparser *p, fkv_tnode **out);
static fkv_status parse_unary(fkv_tparser *p, bool with_filters, fkv_tnode **out);

/* Operators of a level, each with the sign or word that it is written with. */
typedef struct operator_sign {
    const char *text;
    fkv_top op;
} operator_sign;

static const operator_sign comparing[] = {{"==", FKV_T_EQ}, {"!=", FKV_T_NE}, {"<", FKV_T_LT},
                                          {"<=", FKV_T_LE}, {">", FKV_T_GT},  {">=", FKV_T_GE}};
static const operator_sign adding[] = {{"+", FKV_T_ADD}, {"-", FKV_T_SUB}};
static const operator_sign multiplying[] = {
    {"*", FKV_T_MUL}, {"/", FKV_T_DIV}, {"//", FKV_T_FLOORDIV}, {"%", FKV_T_MOD}};
static const operator_sign raising[] = {{"**", FKV_T_POW}};

/* The operator that stands here, or -1. */
static int operator_at(const fkv_tparser *p, const operator_sign *signs, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (fkv_tparser_at_sign(p, signs[i].text)) return signs[i].op;
    return -1;
}

/* Reads "in" and "not in" too. */
static fkv_status take_comparison(fkv_tparser *p, int *op)
{
    const fkv_ttoken *ahead;
    fkv_status st = FKV_OK;
    *op = operator_at(p, comparing, sizeof comparing / sizeof *comparing);
    if (fkv_tparser_at_word(p, "in")) *op = FKV_T_IN;
    if (fkv_tparser_at_word(p, "not")) {
        st = fkv_tparser_look(p, &ahead);
        if (st || !fkv_ttoken_is(ahead, FKV_T_WORD, "in")) return st;
        *op = FKV_T_NOT_IN;
        st = fkv_tparser_advance(p);
    }
    return st || *op < 0 ? st : fkv_tparser_advance(p);
}

/* Adds a link to a chain, which is made of its first operand with the first link. */
static fkv_status add_link(fkv_tparser *p, fkv_tkind kind, int op, parse_function *operand, fkv_tnode **chain,
                           fkv_tnode ***end)
{
    fkv_tnode *link, *first = *chain;
    fkv_status st = FKV_OK;
    if (!*end) {
        st = fkv_tparser_node(p, kind, chain);
        if (st) return st;
        (*chain)->a = first;
        *end = &(*chain)->list;
    }
    st = fkv_tparser_node(p, FKV_N_LINK, &link);
    if (st) return st;
    link->op = (uint8_t)op;
    *end = fkv_tnode_append(*end, link);
    return operand(p, &link->a);
}

/* operand (sign operand)* */
static fkv_status parse_chain(fkv_tparser *p, const operator_sign *signs, size_t n, parse_function *operand,
                              fkv_tnode **out)
{
    fkv_tnode **end = NULL;
    fkv_status st = operand(p, out);
    for (int op; !st && (op = operator_at(p, signs, n)) >= 0;) {
        st = fkv_tparser_advance(p);
        if (!st) st = add_link(p, FKV_N_CHAIN, op, operand, out, &end);
    }
    return st;
}

/* operand (word operand)*, as one node. */
static fkv_status parse_list_of(fkv_tparser *p, fkv_ttoken_kind kind, const char *text, fkv_tkind node,
                                parse_function *operand, fkv_tnode **out)
{
    fkv_tnode *first, *list, **end;
    fkv_status st = operand(p, &first);
    *out = first;
    if (st || !fkv_tparser_at(p, kind, text)) return st;
    st = fkv_tparser_node(p, node, &list);
    if (st) return st;
    end = fkv_tnode_append(&list->list, first);
    *out = list;
    while (!st && fkv_tparser_at(p, kind, text)) {
        st = fkv_tparser_advance(p);
        if (!st) st = operand(p, &first);
        if (!st) end = fkv_tnode_append(end, first);
    }
    return st;
}

static fkv_status parse_filtered(fkv_tparser *p, fkv_tnode **out)
{
    return parse_unary(p, true, out);
}

static fkv_status parse_power(fkv_tparser *p, fkv_tnode **out)
{
    return parse_chain(p, raising, 1, parse_filtered, out);
}

static fkv_status parse_product(fkv_tparser *p, fkv_tnode **out)
{
    return parse_chain(p, multiplying, sizeof multiplying / sizeof *multiplying, parse_power, out);
}

static fkv_status parse_concat(fkv_tparser *p, fkv_tnode **out)
{
    return parse_list_of(p, FKV_T_SIGN, "~", FKV_N_CONCAT, parse_product, out);
}

static fkv_status parse_sum(fkv_tparser *p, fkv_tnode **out)
{
    return parse_chain(p, adding, sizeof adding / sizeof *adding, parse_concat, out);
}

static fkv_status parse_comparison(fkv_tparser *p, fkv_tnode **out)
{
    fkv_tnode **end = NULL;
    fkv_status st = parse_sum(p, out);
    for (int op; !st && !(st = take_comparison(p, &op)) && op >= 0;)
        st = add_link(p, FKV_N_COMPARE, op, parse_sum, out, &end);
    return st;
}

static fkv_status parse_not(fkv_tparser *p, fkv_tnode **out)
{
    if (!fkv_tparser_at_word(p, "not")) return parse_comparison(p, out);
    fkv_status st = fkv_tparser_enter(p);
    if (!st) st = fkv_tparser_node(p, FKV_N_NOT, out);
    if (!st) st = fkv_tparser_advance(p);
    if (!st) st = parse_not(p, &(*out)->a);
    fkv_tparser_leave(p);
    return st;
}

static fkv_status parse_and(fkv_tparser *p, fkv_tnode **out)
{
    return parse_list_of(p, FKV_T_WORD, "and", FKV_N_AND, parse_not, out);
}

static fkv_status parse_or(fkv_tparser *p, fkv_tnode **out)
{
    return parse_list_of(p, FKV_T_WORD, "or", FKV_N_OR, parse_and, out);
}

fkv_status fkv_tparse_expression(fkv_tparser *p, bool with_cond, fkv_tnode **out)
{
    fkv_tnode *node;
    bool otherwise;
    const int depth = p->run->depth;
    fkv_status st = fkv_tparser_enter(p);
    if (!st) st = parse_or(p, out);
    while (!st && with_cond && fkv_tparser_at_word(p, "if")) {
        st = fkv_tparser_node(p, FKV_N_COND, &node);
        if (!st) st = fkv_tparser_advance(p);
        if (!st && (*out)->kind == FKV_N_COND) st = fkv_tparser_enter(p); /* "a if b if c": a is one deeper */
        if (st) break;
        node->a = *out;
        *out = node;
        st = parse_or(p, &node->b);
        if (!st) st = fkv_tparser_skip(p, FKV_T_WORD, "else", &otherwise);
        if (!st && otherwise) st = fkv_tparse_expression(p, true, &node->c);
    }
    p->run->depth = depth;
    return st;
}

/* [a, b] or (a, b) behind the bracket that opens it, up to the one that closes it. */
static fkv_status parse_items(fkv_tparser *p, fkv_tkind kind, const char *closing, fkv_tnode **out)
{
    fkv_tnode *item;
    fkv_status st = fkv_tparser_node(p, kind, out);
    if (st) return st;
    for (fkv_tnode **end = &(*out)->list; !st && !fkv_tparser_at_sign(p, closing);) {
        if ((*out)->list) st = fkv_tparser_expect(p, FKV_T_SIGN, ",");
        if (st || fkv_tparser_at_sign(p, closing)) break;
        st = fkv_tparse_expression(p, true, &item);
        if (!st) end = fkv_tnode_append(end, item);
    }
    return st ? st : fkv_tparser_advance(p);
}

static fkv_status parse_dict(fkv_tparser *p, fkv_tnode **out)
{
    fkv_tnode *pair;
    fkv_status st = fkv_tparser_node(p, FKV_N_DICT, out);
    if (st) return st;
    for (fkv_tnode **end = &(*out)->list; !st && !fkv_tparser_at_sign(p, "}");) {
        if ((*out)->list) st = fkv_tparser_expect(p, FKV_T_SIGN, ",");
        if (st || fkv_tparser_at_sign(p, "}")) break;
        st = fkv_tparser_node(p, FKV_N_PAIR, &pair);
        if (!st) st = fkv_tparse_expression(p, true, &pair->a);
        if (!st) st = fkv_tparser_expect(p, FKV_T_SIGN, ":");
        if (!st) st = fkv_tparse_expression(p, true, &pair->b);
        if (!st) end = fkv_tnode_append(end, pair);
    }
    return st ? st : fkv_tparser_advance(p);
}

static bool at_tuple_end(const fkv_tparser *p, const char *end)
{
    return p->now.kind == FKV_T_CLOSE_OUTPUT || p->now.kind == FKV_T_CLOSE_BLOCK ||
           fkv_tparser_at_sign(p, ")") || (end && fkv_tparser_at_word(p, end));
}

/* Items with commas between them; one without a comma is itself. empty: none at all is a tuple. */
static fkv_status parse_tuple(fkv_tparser *p, bool with_cond, bool empty, const char *end, fkv_tnode **out)
{
    fkv_tnode *tuple, *item = NULL, **last;
    bool comma = false;
    fkv_status st = fkv_tparser_node(p, FKV_N_TUPLE, &tuple);
    if (st) return st;
    for (last = &tuple->list; !st && !at_tuple_end(p, end);) {
        st = fkv_tparse_expression(p, with_cond, &item);
        if (st) break;
        last = fkv_tnode_append(last, item);
        if (!fkv_tparser_at_sign(p, ",")) break;
        comma = true;
        st = fkv_tparser_advance(p);
    }
    if (!st && !tuple->list && !empty) st = fkv_tparser_fail(p, "an expression");
    *out = comma || !tuple->list ? tuple : item;
    return st;
}

fkv_status fkv_tparse_tuple(fkv_tparser *p, bool with_cond, const char *end, fkv_tnode **out)
{
    return parse_tuple(p, with_cond, false, end, out);
}

/* Strings side by side are one. */
static fkv_status parse_literal(fkv_tparser *p, fkv_tnode **out)
{
    fkv_status st = fkv_tparser_node(p, FKV_N_CONST, out);
    if (st) return st;
    fkv_tvalue *v = &(*out)->value;
    *v = p->now.value;
    st = fkv_tparser_advance(p);
    while (!st && v->type == FKV_T_STRING && p->now.kind == FKV_T_LITERAL &&
           p->now.value.type == FKV_T_STRING) {
        fkv_tvalue sum = {.type = FKV_T_STRING};
        st = fkv_tv_calculate(p->run, FKV_T_ADD, *v, p->now.value, &sum);
        *v = sum;
        if (!st) st = fkv_tparser_advance(p);
    }
    return st;
}

/* A constant of that name: *is tells whether it is one. */
static fkv_tvalue constant_of(fkv_tvalue word, bool *is)
{
    *is = true;
    if (fkv_tv_is(word, "true") || fkv_tv_is(word, "True")) return fkv_tv_bool(true);
    if (fkv_tv_is(word, "false") || fkv_tv_is(word, "False")) return fkv_tv_bool(false);
    if (fkv_tv_is(word, "none") || fkv_tv_is(word, "None")) return fkv_tv_none();
    *is = false;
    return word;
}

static fkv_status parse_name(fkv_tparser *p, fkv_tnode **out)
{
    bool constant;
    fkv_tvalue word;
    fkv_status st = fkv_tparser_node(p, FKV_N_NAME, out);
    if (!st) st = fkv_tparser_word(p, &word);
    if (st) return st;
    (*out)->value = constant_of(word, &constant);
    if (constant) (*out)->kind = FKV_N_CONST;
    return constant ? FKV_OK : fkv_tparser_name(p, word, &(*out)->name);
}

static fkv_status parse_primary(fkv_tparser *p, fkv_tnode **out)
{
    fkv_status st;
    if (p->now.kind == FKV_T_WORD) return parse_name(p, out);
    if (p->now.kind == FKV_T_LITERAL) return parse_literal(p, out);
    const bool tuple = fkv_tparser_at_sign(p, "("), list = fkv_tparser_at_sign(p, "[");
    if (!tuple && !list && !fkv_tparser_at_sign(p, "{")) return fkv_tparser_fail(p, "an expression");
    st = fkv_tparser_advance(p);
    if (st) return st;
    if (list) return parse_items(p, FKV_N_LIST, "]", out);
    if (!tuple) return parse_dict(p, out);
    st = parse_tuple(p, true, true, NULL, out);
    return st ? st : fkv_tparser_expect(p, FKV_T_SIGN, ")");
}

/* "(a, b, c=1)". */
static fkv_status parse_args(fkv_tparser *p, fkv_tnode **list)
{
    const fkv_ttoken *ahead;
    fkv_tnode *arg;
    bool named = false;
    fkv_status st = fkv_tparser_expect(p, FKV_T_SIGN, "(");
    for (fkv_tnode **end = list; !st && !fkv_tparser_at_sign(p, ")");) {
        if (*list) st = fkv_tparser_expect(p, FKV_T_SIGN, ",");
        if (st || fkv_tparser_at_sign(p, ")")) break;
        st = fkv_tparser_node(p, FKV_N_ARG, &arg);
        if (!st) st = fkv_tparser_look(p, &ahead);
        if (st) break;
        if (fkv_tparser_at_sign(p, "*") || fkv_tparser_at_sign(p, "**"))
            return fkv_trun_fail(p->run, "arguments that are unpacked (* and **) are not supported");
        if (p->now.kind == FKV_T_WORD && fkv_ttoken_is(ahead, FKV_T_SIGN, "=")) {
            arg->flag = named = true;
            arg->value = p->now.value;
            st = fkv_tparser_advance(p);
            if (!st) st = fkv_tparser_advance(p);
        } else if (named) {
            return fkv_tparser_fail(p, "a keyword argument");
        }
        if (!st) st = fkv_tparse_expression(p, true, &arg->a);
        if (!st) end = fkv_tnode_append(end, arg);
    }
    return st ? st : fkv_tparser_advance(p);
}

/* A bound of a slice, if there is one. */
static fkv_status parse_bound(fkv_tparser *p, fkv_tnode **out)
{
    if (fkv_tparser_at_sign(p, ":") || fkv_tparser_at_sign(p, "]") || fkv_tparser_at_sign(p, ","))
        return FKV_OK;
    return fkv_tparse_expression(p, true, out);
}

/* Behind "[". */
static fkv_status parse_brackets(fkv_tparser *p, fkv_tnode *step)
{
    bool colon;
    step->kind = FKV_N_ITEM;
    if (!fkv_tparser_at_sign(p, ":")) {
        fkv_status st = fkv_tparse_expression(p, true, &step->a);
        if (st) return st;
        if (fkv_tparser_at_sign(p, ",")) { /* a tuple */
            fkv_tnode *first = step->a, *rest;
            st = fkv_tparser_advance(p);
            if (!st) st = parse_items(p, FKV_N_TUPLE, "]", &rest);
            if (st) return st;
            first->next = rest->list;
            rest->list = first;
            step->a = rest;
            return FKV_OK;
        }
    }
    fkv_status st = fkv_tparser_skip(p, FKV_T_SIGN, ":", &colon);
    if (!st && colon) {
        step->kind = FKV_N_SLICE;
        st = parse_bound(p, &step->b);
        if (!st) st = fkv_tparser_skip(p, FKV_T_SIGN, ":", &colon);
        if (!st && colon) st = parse_bound(p, &step->c);
    }
    return st ? st : fkv_tparser_expect(p, FKV_T_SIGN, "]");
}

/* Behind ".": a name, or the number of an item. */
static fkv_status parse_member(fkv_tparser *p, fkv_tnode *step)
{
    if (p->now.kind == FKV_T_LITERAL && p->now.value.type == FKV_T_INT) {
        step->kind = FKV_N_ITEM;
        return parse_literal(p, &step->a);
    }
    step->kind = FKV_N_ATTR;
    return fkv_tparser_word(p, &step->value);
}

/* A name with dots, as filters and tests may have. */
static fkv_status parse_dotted(fkv_tparser *p, fkv_tvalue *out)
{
    fkv_tvalue more;
    bool dot;
    fkv_status st = fkv_tparser_word(p, out);
    while (!st && !(st = fkv_tparser_skip(p, FKV_T_SIGN, ".", &dot)) && dot) {
        st = fkv_tparser_word(p, &more);
        if (!st) st = fkv_tv_calculate(p->run, FKV_T_ADD, *out, fkv_tv_text("."), out);
        if (!st) st = fkv_tv_calculate(p->run, FKV_T_ADD, *out, more, out);
    }
    return st;
}

static fkv_status parse_filter(fkv_tparser *p, fkv_tnode **out)
{
    fkv_status st = fkv_tparser_node(p, FKV_N_FILTER, out);
    if (!st) st = parse_dotted(p, &(*out)->value);
    return st || !fkv_tparser_at_sign(p, "(") ? st : parse_args(p, &(*out)->list);
}

fkv_status fkv_tparse_filters(fkv_tparser *p, bool first, fkv_tnode **list)
{
    fkv_tnode *filter;
    fkv_status st = FKV_OK;
    for (fkv_tnode **end = list; !st && (first || fkv_tparser_at_sign(p, "|")); first = false) {
        if (!first) st = fkv_tparser_advance(p);
        if (!st) st = parse_filter(p, &filter);
        if (!st) end = fkv_tnode_append(end, filter);
    }
    return st;
}

static fkv_status parse_steps(fkv_tparser *p, fkv_tnode *base, bool with_filters, fkv_tnode **out);

/* Whether an argument without brackets follows a test's name. */
static bool at_test_argument(const fkv_tparser *p)
{
    if (p->now.kind == FKV_T_LITERAL || fkv_tparser_at_sign(p, "[") || fkv_tparser_at_sign(p, "{"))
        return true;
    return p->now.kind == FKV_T_WORD && !fkv_tparser_at_word(p, "else") && !fkv_tparser_at_word(p, "or") &&
           !fkv_tparser_at_word(p, "and");
}

/* Behind "is". */
static fkv_status parse_test(fkv_tparser *p, fkv_tnode *step)
{
    fkv_tnode *arg, *value = NULL;
    step->kind = FKV_N_TEST;
    fkv_status st = fkv_tparser_skip(p, FKV_T_WORD, "not", &step->flag);
    if (!st) st = parse_dotted(p, &step->value);
    if (st || fkv_tparser_at_sign(p, "(")) return st ? st : parse_args(p, &step->list);
    if (!at_test_argument(p)) return FKV_OK;
    if (fkv_tparser_at_word(p, "is"))
        return fkv_tparser_fail(p, "the end of a test, of which there is no chain");
    st = fkv_tparser_node(p, FKV_N_ARG, &arg);
    if (!st) st = fkv_tparser_enter(p);
    if (!st) st = parse_primary(p, &value);
    if (!st) st = parse_steps(p, value, false, &arg->a);
    fkv_tparser_leave(p);
    step->list = arg;
    return st;
}

/* What may follow a value: .name [item] (call), and with filters also |filter and is test. */
static fkv_status parse_step(fkv_tparser *p, bool with_filters, fkv_tnode **out)
{
    *out = NULL;
    const bool dot = fkv_tparser_at_sign(p, "."), bracket = fkv_tparser_at_sign(p, "[");
    const bool call = fkv_tparser_at_sign(p, "("), filter = with_filters && fkv_tparser_at_sign(p, "|");
    if (!dot && !bracket && !call && !filter && !(with_filters && fkv_tparser_at_word(p, "is")))
        return FKV_OK;
    fkv_status st = fkv_tparser_node(p, FKV_N_CALL, out);
    if (st) return st;
    if (call) return parse_args(p, &(*out)->list);
    st = fkv_tparser_advance(p);
    if (st) return st;
    if (dot) return parse_member(p, *out);
    if (bracket) return parse_brackets(p, *out);
    return filter ? parse_filter(p, out) : parse_test(p, *out);
}

/* Once a filter or a test stands there, only filters, tests and calls follow, as in Jinja. */
static fkv_status parse_steps(fkv_tparser *p, fkv_tnode *base, bool with_filters, fkv_tnode **out)
{
    fkv_tnode *chain = NULL, *step, **end = NULL;
    bool filtered = false;
    fkv_status st;
    *out = base;
    for (;;) {
        if (filtered && (fkv_tparser_at_sign(p, ".") || fkv_tparser_at_sign(p, "["))) return FKV_OK;
        st = parse_step(p, with_filters, &step);
        if (st || !step) return st;
        filtered |= step->kind == FKV_N_FILTER || step->kind == FKV_N_TEST;
        if (!chain) {
            st = fkv_tparser_node(p, FKV_N_POSTFIX, &chain);
            if (st) return st;
            chain->a = base;
            end = &chain->list;
            *out = chain;
        }
        end = fkv_tnode_append(end, step);
    }
}

/* The sign binds tighter than a filter: -x|f is (-x)|f. */
static fkv_status parse_unary(fkv_tparser *p, bool with_filters, fkv_tnode **out)
{
    fkv_tnode *node = NULL;
    const bool minus = fkv_tparser_at_sign(p, "-"), plus = fkv_tparser_at_sign(p, "+");
    fkv_status st = FKV_OK;
    if (minus || plus) {
        st = fkv_tparser_enter(p);
        if (!st) st = fkv_tparser_node(p, FKV_N_NEGATE, &node);
        if (!st) st = fkv_tparser_advance(p);
        if (st) return st;
        node->flag = plus;
        st = parse_unary(p, false, &node->a);
        fkv_tparser_leave(p);
    } else {
        st = parse_primary(p, &node);
    }
    return st ? st : parse_steps(p, node, with_filters, out);
}

fkv_status fkv_tparse_target(fkv_tparser *p, bool members, const char *end, fkv_tnode **out)
{
    fkv_tnode *tuple, *item = NULL, **last;
    bool comma = false;
    fkv_status st = fkv_tparser_node(p, FKV_N_TUPLE, &tuple);
    if (st) return st;
    for (last = &tuple->list; !st && !at_tuple_end(p, end);) {
        if (fkv_tparser_at_sign(p, "(")) { /* a tuple in a tuple */
            st = fkv_tparser_enter(p);
            if (!st) st = fkv_tparser_advance(p);
            if (!st) st = fkv_tparse_target(p, members, NULL, &item);
            if (!st) st = fkv_tparser_expect(p, FKV_T_SIGN, ")");
            fkv_tparser_leave(p);
        } else if (p->now.kind == FKV_T_WORD) {
            st = parse_name(p, &item);
            if (!st && item->kind == FKV_N_CONST) st = fkv_tparser_fail(p, "another name to assign to");
            if (!st && members && fkv_tparser_at_sign(p, ".")) {
                item->kind = FKV_N_MEMBER;
                st = fkv_tparser_advance(p);
                if (!st) st = fkv_tparser_word(p, &item->value);
            }
        } else {
            st = fkv_tparser_fail(p, "a name to assign to");
        }
        if (st) break;
        last = fkv_tnode_append(last, item);
        if (!fkv_tparser_at_sign(p, ",")) break;
        comma = true;
        st = fkv_tparser_advance(p);
    }
    if (!st && !tuple->list) st = fkv_tparser_fail(p, "a name to assign to");
    *out = comma ? tuple : item;
    return st;
}
