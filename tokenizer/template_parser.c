/* The parser of statements, by Jinja's grammar: see template_parser.h. */
#include "tokenizer/template_parser.h"

#include <string.h>

#include "tokenizer/template_expression.h"

typedef fkv_status statement_function(fkv_tparser *p, fkv_tnode **out);

static fkv_status parse_statements(fkv_tparser *p, const char *ends, fkv_tnode **list);

/* Whether the word that stands here is one of words ("a b c"). */
static bool at_any(const fkv_tparser *p, const char *words)
{
    const fkv_tvalue v = p->now.value;
    if (p->now.kind != FKV_T_WORD) return false;
    for (const char *w = words; *w;) {
        const size_t n = strcspn(w, " ");
        if (n == v.n && memcmp(w, v.s, n) == 0) return true;
        w += n + (w[n] == ' ');
    }
    return false;
}

/* The rest of a tag and what stands behind it, up to a tag of one of these words, which is read
 * up to the word. */
static fkv_status parse_body(fkv_tparser *p, const char *ends, fkv_tnode **list)
{
    bool colon;
    fkv_status st = fkv_tparser_enter(p);
    if (!st) st = fkv_tparser_skip(p, FKV_T_SIGN, ":", &colon);
    if (!st) st = fkv_tparser_expect(p, FKV_T_CLOSE_BLOCK, NULL);
    if (!st) st = parse_statements(p, ends, list);
    fkv_tparser_leave(p);
    return st;
}

/* The same up to the one word that ends it, which is read. */
static fkv_status parse_to(fkv_tparser *p, const char *end, fkv_tnode **list)
{
    fkv_status st = parse_body(p, end, list);
    return st ? st : fkv_tparser_advance(p);
}

static fkv_status parse_if(fkv_tparser *p, fkv_tnode **out)
{
    fkv_tnode *branch;
    bool last = false;
    fkv_status st = fkv_tparser_node(p, FKV_N_IF, out);
    for (fkv_tnode **end = &(*out)->list; !st && !last;) {
        st = fkv_tparser_node(p, FKV_N_BRANCH, &branch);
        if (!st) st = fkv_tparser_advance(p); /* if, elif */
        if (!st) st = fkv_tparse_tuple(p, false, NULL, &branch->a);
        if (!st) st = parse_body(p, "elif else endif", &branch->list);
        if (st) break;
        end = fkv_tnode_append(end, branch);
        last = !fkv_tparser_at_word(p, "elif");
        if (!fkv_tparser_at_word(p, "else")) continue;
        st = fkv_tparser_node(p, FKV_N_BRANCH, &branch);
        if (!st) st = fkv_tparser_advance(p);
        if (!st) st = parse_body(p, "endif", &branch->list);
        if (!st) end = fkv_tnode_append(end, branch);
    }
    return st ? st : fkv_tparser_advance(p);
}

static fkv_status parse_for(fkv_tparser *p, fkv_tnode **out)
{
    bool cond = false, other = false;
    fkv_status st = fkv_tparser_node(p, FKV_N_FOR, out);
    if (st) return st;
    fkv_tnode *loop = *out;
    st = fkv_tparser_advance(p);
    if (!st) st = fkv_tparse_target(p, false, "in", &loop->a);
    if (!st) st = fkv_tparser_expect(p, FKV_T_WORD, "in");
    if (!st) st = fkv_tparse_tuple(p, false, "recursive", &loop->b);
    if (!st) st = fkv_tparser_skip(p, FKV_T_WORD, "if", &cond);
    if (!st && cond) st = fkv_tparse_expression(p, true, &loop->c);
    if (!st && fkv_tparser_at_word(p, "recursive"))
        st = fkv_trun_fail(p->run, "recursive loops are not supported");
    p->loops++;
    if (!st) st = parse_body(p, "else endfor", &loop->list);
    p->loops--;
    if (!st) st = fkv_tparser_skip(p, FKV_T_WORD, "else", &other);
    if (!st && other) return parse_to(p, "endfor", &loop->other);
    return st ? st : fkv_tparser_advance(p);
}

static fkv_status parse_set(fkv_tparser *p, fkv_tnode **out)
{
    bool equals;
    fkv_status st = fkv_tparser_node(p, FKV_N_SET, out);
    if (!st) st = fkv_tparser_advance(p);
    if (!st) st = fkv_tparse_target(p, true, NULL, &(*out)->a);
    if (!st) st = fkv_tparser_skip(p, FKV_T_SIGN, "=", &equals);
    if (st) return st;
    if (equals) return fkv_tparse_tuple(p, true, NULL, &(*out)->b);
    (*out)->kind = FKV_N_CAPTURE;
    st = fkv_tparse_filters(p, false, &(*out)->other);
    return st ? st : parse_to(p, "endset", &(*out)->list);
}

static fkv_status parse_filter_block(fkv_tparser *p, fkv_tnode **out)
{
    fkv_status st = fkv_tparser_node(p, FKV_N_FILTERED, out);
    if (!st) st = fkv_tparser_advance(p);
    if (!st) st = fkv_tparse_filters(p, true, &(*out)->other);
    return st ? st : parse_to(p, "endfilter", &(*out)->list);
}

/* "(a, b=1)". */
static fkv_status parse_params(fkv_tparser *p, fkv_tnode **list)
{
    fkv_tnode *param;
    bool defaults = false, equals;
    fkv_status st = fkv_tparser_expect(p, FKV_T_SIGN, "(");
    for (fkv_tnode **end = list; !st && !fkv_tparser_at_sign(p, ")");) {
        if (*list) st = fkv_tparser_expect(p, FKV_T_SIGN, ",");
        if (!st) st = fkv_tparser_node(p, FKV_N_PARAM, &param);
        if (!st) st = fkv_tparser_word(p, &param->value);
        if (!st) st = fkv_tparser_name(p, param->value, &param->name);
        if (!st) st = fkv_tparser_skip(p, FKV_T_SIGN, "=", &equals);
        if (st) break;
        if (equals) st = fkv_tparse_expression(p, true, &param->a);
        if (!equals && defaults) st = fkv_tparser_fail(p, "a default");
        defaults |= equals;
        end = fkv_tnode_append(end, param);
    }
    return st ? st : fkv_tparser_advance(p);
}

/* A body that is called: loops around it are none of its. */
static fkv_status parse_called_body(fkv_tparser *p, const char *end, fkv_tnode **list)
{
    const int loops = p->loops;
    p->loops = 0;
    fkv_status st = parse_to(p, end, list);
    p->loops = loops;
    return st;
}

static fkv_status parse_macro(fkv_tparser *p, fkv_tnode **out)
{
    fkv_status st = fkv_tparser_node(p, FKV_N_MACRO, out);
    if (!st) st = fkv_tparser_advance(p);
    if (!st) st = fkv_tparser_word(p, &(*out)->value);
    if (!st) st = fkv_tparser_name(p, (*out)->value, &(*out)->name);
    if (!st) st = parse_params(p, &(*out)->other);
    return st ? st : parse_called_body(p, "endmacro", &(*out)->list);
}

static fkv_status parse_call_block(fkv_tparser *p, fkv_tnode **out)
{
    fkv_status st = fkv_tparser_node(p, FKV_N_CALLED, out);
    if (!st) st = fkv_tparser_advance(p);
    if (!st && fkv_tparser_at_sign(p, "(")) st = parse_params(p, &(*out)->other);
    if (!st) st = fkv_tparse_expression(p, true, &(*out)->a);
    if (st) return st;
    fkv_tnode *last = (*out)->a->kind == FKV_N_POSTFIX ? (*out)->a->list : NULL;
    while (last && last->next) last = last->next;
    if (!last || last->kind != FKV_N_CALL) return fkv_tparser_fail(p, "a call before it");
    last->flag = true;
    return parse_called_body(p, "endcall", &(*out)->list);
}

static fkv_status parse_with(fkv_tparser *p, fkv_tnode **out)
{
    fkv_tnode *set;
    fkv_status st = fkv_tparser_node(p, FKV_N_WITH, out);
    if (!st) st = fkv_tparser_advance(p);
    for (fkv_tnode **end = &(*out)->other; !st && p->now.kind != FKV_T_CLOSE_BLOCK;) {
        if ((*out)->other) st = fkv_tparser_expect(p, FKV_T_SIGN, ",");
        if (!st) st = fkv_tparser_node(p, FKV_N_SET, &set);
        if (!st) st = fkv_tparse_target(p, false, NULL, &set->a);
        if (!st) st = fkv_tparser_expect(p, FKV_T_SIGN, "=");
        if (!st) st = fkv_tparse_expression(p, true, &set->b);
        if (!st) end = fkv_tnode_append(end, set);
    }
    return st ? st : parse_to(p, "endwith", &(*out)->list);
}

/* HF's own tag: what the model said, marked for training. Here it is a scope. */
static fkv_status parse_generation(fkv_tparser *p, fkv_tnode **out)
{
    fkv_status st = fkv_tparser_node(p, FKV_N_WITH, out);
    if (!st) st = fkv_tparser_advance(p);
    return st ? st : parse_called_body(p, "endgeneration", &(*out)->list);
}

static fkv_status parse_jump(fkv_tparser *p, fkv_tnode **out)
{
    fkv_status st = fkv_tparser_node(p, fkv_tparser_at_word(p, "break") ? FKV_N_BREAK : FKV_N_CONTINUE, out);
    if (!st && !p->loops) st = fkv_trun_fail(p->run, "break and continue stand in loops alone");
    return st ? st : fkv_tparser_advance(p);
}

static const struct {
    const char *word;
    statement_function *parse;
} statements[] = {
    {"if", parse_if},
    {"for", parse_for},
    {"set", parse_set},
    {"macro", parse_macro},
    {"filter", parse_filter_block},
    {"call", parse_call_block},
    {"with", parse_with},
    {"generation", parse_generation},
    {"break", parse_jump},
    {"continue", parse_jump},
};

static fkv_status parse_statement(fkv_tparser *p, fkv_tnode **out)
{
    const fkv_tvalue word = p->now.value;
    for (size_t i = 0; i < sizeof statements / sizeof *statements; i++)
        if (fkv_tparser_at_word(p, statements[i].word)) return statements[i].parse(p, out);
    if (p->now.kind != FKV_T_WORD) return fkv_tparser_fail(p, "the name of a tag");
    return fkv_trun_fail(p->run, "the tag '%.*s' is not supported here", word.n < 40 ? (int)word.n : 40,
                         word.s);
}

/* One statement, or NULL at a word that ends the list. */
static fkv_status parse_next(fkv_tparser *p, const char *ends, fkv_tnode **out)
{
    fkv_status st;
    *out = NULL;
    if (p->now.kind == FKV_T_DATA) {
        const fkv_tvalue data = p->now.value;
        st = fkv_tparser_node(p, FKV_N_DATA, out);
        if (!st) (*out)->value = data;
        return st ? st : fkv_tparser_advance(p);
    }
    if (p->now.kind == FKV_T_OPEN_OUTPUT) {
        st = fkv_tparser_node(p, FKV_N_OUTPUT, out);
        if (!st) st = fkv_tparser_advance(p);
        if (!st) st = fkv_tparse_tuple(p, true, NULL, &(*out)->a);
        return st ? st : fkv_tparser_expect(p, FKV_T_CLOSE_OUTPUT, NULL);
    }
    st = fkv_tparser_advance(p); /* {% */
    if (st || at_any(p, ends)) return st;
    st = parse_statement(p, out);
    return st ? st : fkv_tparser_expect(p, FKV_T_CLOSE_BLOCK, NULL);
}

static fkv_status parse_statements(fkv_tparser *p, const char *ends, fkv_tnode **list)
{
    fkv_tnode *node;
    for (fkv_tnode **end = list; p->now.kind != FKV_T_END; end = fkv_tnode_append(end, node)) {
        fkv_status st = parse_next(p, ends, &node);
        if (st || !node) return st;
    }
    return *ends ? fkv_tparser_fail(p, ends) : FKV_OK;
}

fkv_status fkv_tparse(fkv_trun *run, const char *text, size_t n, fkv_tsyntax *syntax)
{
    fkv_tparser p = {.run = run, .lexer = {.run = run, .inside = FKV_T_DATA, .line_starts = true}};
    fkv_tvalue source, names;
    int number;
    run->line = 1;
    fkv_status st = fkv_tlexer_normalise(run, text, n, &source);
    if (!st) st = fkv_tv_new_dict(run, FKV_T_DICT, &names);
    if (st) return st;
    p.lexer.text = source.s;
    p.lexer.n = source.n;
    p.names = names.dict;
    st = fkv_tparser_name(&p, fkv_tv_text("loop"), &number);
    if (!st) st = fkv_tparser_name(&p, fkv_tv_text("caller"), &number);
    if (!st) st = fkv_tparser_advance(&p);
    if (!st) st = parse_statements(&p, "", &syntax->body);
    syntax->names = names.dict;
    return st;
}
