/* Tokens and nodes for the parser: see template_syntax.h. */
#include "tokenizer/template_syntax.h"

fkv_status fkv_tparser_fail(fkv_tparser *p, const char *wanted)
{
    const fkv_tvalue v = p->now.value;
    const int n = v.type == FKV_T_STRING ? (v.n < 40 ? (int)v.n : 40) : 0;
    p->run->line = p->now.line;
    switch (p->now.kind) {
    case FKV_T_END: return fkv_trun_fail(p->run, "the template ends where %s is expected", wanted);
    case FKV_T_CLOSE_BLOCK: return fkv_trun_fail(p->run, "%%} stands where %s is expected", wanted);
    case FKV_T_CLOSE_OUTPUT: return fkv_trun_fail(p->run, "}} stands where %s is expected", wanted);
    case FKV_T_LITERAL: return fkv_trun_fail(p->run, "a literal stands where %s is expected", wanted);
    default: return fkv_trun_fail(p->run, "'%.*s' stands where %s is expected", n, n ? v.s : "", wanted);
    }
}

fkv_status fkv_tparser_advance(fkv_tparser *p)
{
    if (!p->looked) return fkv_tlexer_next(&p->lexer, &p->now);
    p->now = p->ahead;
    p->looked = false;
    return FKV_OK;
}

fkv_status fkv_tparser_look(fkv_tparser *p, const fkv_ttoken **out)
{
    fkv_status st = p->looked ? FKV_OK : fkv_tlexer_next(&p->lexer, &p->ahead);
    p->looked = !st;
    *out = &p->ahead;
    return st;
}

bool fkv_tparser_at(const fkv_tparser *p, fkv_ttoken_kind kind, const char *text)
{
    return p->now.kind == kind && (!text || fkv_tv_is(p->now.value, text));
}

bool fkv_tparser_at_word(const fkv_tparser *p, const char *word)
{
    return fkv_tparser_at(p, FKV_T_WORD, word);
}

bool fkv_tparser_at_sign(const fkv_tparser *p, const char *sign)
{
    return fkv_tparser_at(p, FKV_T_SIGN, sign);
}

fkv_status fkv_tparser_skip(fkv_tparser *p, fkv_ttoken_kind kind, const char *text, bool *skipped)
{
    *skipped = fkv_tparser_at(p, kind, text);
    return *skipped ? fkv_tparser_advance(p) : FKV_OK;
}

fkv_status fkv_tparser_expect(fkv_tparser *p, fkv_ttoken_kind kind, const char *text)
{
    static const char *const closing[] = {[FKV_T_CLOSE_OUTPUT] = "}}", [FKV_T_CLOSE_BLOCK] = "%}"};
    if (fkv_tparser_at(p, kind, text)) return fkv_tparser_advance(p);
    return fkv_tparser_fail(p, text ? text : closing[kind]);
}

fkv_status fkv_tparser_word(fkv_tparser *p, fkv_tvalue *out)
{
    if (p->now.kind != FKV_T_WORD) return fkv_tparser_fail(p, "a name");
    *out = p->now.value;
    return fkv_tparser_advance(p);
}

fkv_status fkv_tparser_enter(fkv_tparser *p)
{
    if (p->run->depth >= FKV_TEMPLATE_DEPTH)
        return fkv_trun_fail(p->run, "brackets and blocks are nested more than %d deep", FKV_TEMPLATE_DEPTH);
    p->run->depth++;
    return FKV_OK;
}

void fkv_tparser_leave(fkv_tparser *p)
{
    p->run->depth--;
}

fkv_status fkv_tparser_node(fkv_tparser *p, fkv_tkind kind, fkv_tnode **out)
{
    *out = fkv_tarena_take(&p->run->arena, 1, sizeof **out);
    if (!*out) return fkv_trun_no_room(p->run);
    (*out)->kind = (uint8_t)kind;
    (*out)->line = p->now.line;
    return FKV_OK;
}

fkv_status fkv_tparser_name(fkv_tparser *p, fkv_tvalue word, int *number)
{
    fkv_tentry *entry;
    fkv_status st = fkv_tdict_get(p->run, p->names, word, &entry);
    if (st) return st;
    *number = entry ? (int)entry->value.i : (int)p->names->n;
    return entry ? FKV_OK : fkv_tdict_set(p->run, p->names, word, fkv_tv_int(*number));
}

fkv_tnode **fkv_tnode_append(fkv_tnode **end, fkv_tnode *node)
{
    *end = node;
    return &node->next;
}
