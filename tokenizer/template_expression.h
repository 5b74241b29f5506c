/* The parser's half that knows expressions: from a token on, up to the first that can't belong to
 * it. Nodes live in the parser's arena. */
#ifndef FKV_TEMPLATE_EXPRESSION_H
#define FKV_TEMPLATE_EXPRESSION_H

#include "tokenizer/template_syntax.h"

/* One expression; with_cond: "a if b else c" is one. */
fkv_status fkv_tparse_expression(fkv_tparser *p, bool with_cond, fkv_tnode **out);

/* Expressions with commas between them are a tuple. end: a word that ends it, or NULL. */
fkv_status fkv_tparse_tuple(fkv_tparser *p, bool with_cond, const char *end, fkv_tnode **out);

/* What can be assigned to: names, and with members also ns.x; commas make a tuple. */
fkv_status fkv_tparse_target(fkv_tparser *p, bool members, const char *end, fkv_tnode **out);

/* "| a | b(1)": a list of FILTER. first: the first stands without its "|". */
fkv_status fkv_tparse_filters(fkv_tparser *p, bool first, fkv_tnode **list);

#endif
