/* A template's text to its syntax tree: the half of the parser that knows statements, which asks
 * template_expression.c for the rest. */
#ifndef FKV_TEMPLATE_PARSER_H
#define FKV_TEMPLATE_PARSER_H

#include "tokenizer/template_syntax.h"

enum { FKV_T_NAME_LOOP, FKV_T_NAME_CALLER }; /* numbers of names that mean something */

typedef struct fkv_tsyntax {
    fkv_tnode *body;        /* statements */
    const fkv_tdict *names; /* of variables; a name's number is its place */
} fkv_tsyntax;

/* Parses the whole text, which is UTF-8. What syntax points to lives in the run's arena. */
fkv_status fkv_tparse(fkv_trun *run, const char *text, size_t n, fkv_tsyntax *syntax);

#endif
