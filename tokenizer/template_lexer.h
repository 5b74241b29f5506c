/* A template's text as tokens, by Jinja's rules with trim_blocks and lstrip_blocks on: comments are
 * gone, white space around tags is cut, strings are unescaped, raw blocks are data. The lexer
 * borrows the text, which is normalised (fkv_tlexer_normalise); tokens borrow from both it and the
 * arena. Not for: what tokens mean (template_parser.c). */
#ifndef FKV_TEMPLATE_LEXER_H
#define FKV_TEMPLATE_LEXER_H

#include "tokenizer/template_value.h"

typedef enum fkv_ttoken_kind {
    FKV_T_END,
    FKV_T_DATA,
    FKV_T_OPEN_OUTPUT,  /* {{ */
    FKV_T_CLOSE_OUTPUT, /* }} */
    FKV_T_OPEN_BLOCK,   /* {% */
    FKV_T_CLOSE_BLOCK,  /* %} */
    FKV_T_WORD,
    FKV_T_LITERAL, /* a string, integer or float */
    FKV_T_SIGN,    /* an operator or a bracket: one or two characters */
} fkv_ttoken_kind;

typedef struct fkv_ttoken {
    fkv_ttoken_kind kind;
    int line;
    fkv_tvalue value; /* data, literal, and as a string the word or sign */
} fkv_ttoken;

enum { FKV_TEMPLATE_BRACKETS = 4 * FKV_TEMPLATE_DEPTH }; /* open at the same time; the parser allows fewer */

typedef struct fkv_tlexer {
    fkv_trun *run; /* its line is the lexer's */
    const char *text;
    size_t n, at;
    fkv_ttoken_kind inside; /* OPEN_OUTPUT, OPEN_BLOCK, or DATA outside tags */
    fkv_ttoken_kind opened; /* a tag whose data comes first: to be given next; END: none */
    bool line_starts;       /* what was last read ended with a new line */
    int n_brackets;
    char brackets[FKV_TEMPLATE_BRACKETS]; /* what closes those that are open */
} fkv_tlexer;

/* New lines become \n, and the last one goes. A copy in the arena. */
fkv_status fkv_tlexer_normalise(fkv_trun *run, const char *text, size_t n, fkv_tvalue *out);

fkv_status fkv_tlexer_next(fkv_tlexer *x, fkv_ttoken *out);

bool fkv_ttoken_is(const fkv_ttoken *t, fkv_ttoken_kind kind, const char *text);

#endif
