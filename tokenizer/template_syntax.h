/* A template's syntax tree, and what both halves of the parser share: tokens and nodes. Chains of
 * operators, of postfixes and of elif are lists, so that only brackets and blocks nest. Nodes live
 * in the parser's arena. Not for: which tokens make a node (template_expression.c,
 * template_parser.c). */
#ifndef FKV_TEMPLATE_SYNTAX_H
#define FKV_TEMPLATE_SYNTAX_H

#include "tokenizer/template_lexer.h"
#include "tokenizer/template_operator.h"

typedef enum fkv_tkind {
    /* expressions */
    FKV_N_CONST,   /* value */
    FKV_N_NAME,    /* name */
    FKV_N_LIST,    /* list: items */
    FKV_N_TUPLE,   /* list: items */
    FKV_N_DICT,    /* list: PAIR */
    FKV_N_PAIR,    /* a: key, b: value */
    FKV_N_OR,      /* list: operands */
    FKV_N_AND,     /* list: operands */
    FKV_N_NOT,     /* a */
    FKV_N_NEGATE,  /* a; flag: unary plus */
    FKV_N_CHAIN,   /* a: first operand, list: LINK; calculated from the left */
    FKV_N_COMPARE, /* a: first operand, list: LINK; each with the one before it */
    FKV_N_LINK,    /* op, a: operand */
    FKV_N_CONCAT,  /* list: operands of ~ */
    FKV_N_COND,    /* a if b else c, which may be NULL */
    FKV_N_POSTFIX, /* a: what stands first, list: steps, from the left */
    FKV_N_ATTR,    /* a step: value: name */
    FKV_N_ITEM,    /* a step: a: key */
    FKV_N_SLICE,   /* a step: a, b, c: bounds or NULL */
    FKV_N_CALL,    /* a step: list: ARG; flag: of a {% call %} */
    FKV_N_FILTER,  /* a step: value: name, list: ARG */
    FKV_N_TEST,    /* a step: value: name, list: ARG, flag: not */
    FKV_N_ARG,     /* a; flag: has a name, value */
    /* statements */
    FKV_N_DATA,     /* value */
    FKV_N_OUTPUT,   /* a */
    FKV_N_IF,       /* list: BRANCH */
    FKV_N_BRANCH,   /* a: condition or NULL, list: body */
    FKV_N_FOR,      /* a: target, b: what is iterated, c: condition or NULL, list: body, other: else */
    FKV_N_SET,      /* a: target, b: value */
    FKV_N_CAPTURE,  /* {% set x %}: a: target, list: body, other: FILTER */
    FKV_N_FILTERED, /* {% filter %}: list: body, other: FILTER */
    FKV_N_MACRO,    /* name, value: its name, other: PARAM, list: body */
    FKV_N_PARAM,    /* name, value: its name, a: default or NULL */
    FKV_N_CALLED,   /* {% call %}: a: POSTFIX that ends with CALL, other: PARAM, list: body */
    FKV_N_WITH,     /* other: SET, list: body */
    FKV_N_BREAK,
    FKV_N_CONTINUE,
    /* targets of assignments, beside NAME and TUPLE */
    FKV_N_MEMBER, /* of a namespace: name, value: the member's name */
} fkv_tkind;

typedef struct fkv_tnode {
    uint8_t kind, op; /* fkv_tkind, fkv_top */
    bool flag;
    int line, name; /* name: the number of a variable's name */
    fkv_tvalue value;
    struct fkv_tnode *a, *b, *c;
    struct fkv_tnode *list, *other; /* the first of nodes linked by next */
    struct fkv_tnode *next;
} fkv_tnode;

typedef struct fkv_tparser {
    fkv_trun *run;
    fkv_tlexer lexer;
    fkv_ttoken now, ahead; /* ahead: END until it was looked at */
    bool looked;
    fkv_tdict *names; /* of variables: their numbers, from 0 on */
    int loops;        /* that break and continue would end */
} fkv_tparser;

/* FKV_E_INPUT at the token that is read. */
fkv_status fkv_tparser_fail(fkv_tparser *p, const char *wanted);

fkv_status fkv_tparser_advance(fkv_tparser *p);
/* The token behind the present one. */
fkv_status fkv_tparser_look(fkv_tparser *p, const fkv_ttoken **out);
bool fkv_tparser_at(const fkv_tparser *p, fkv_ttoken_kind kind, const char *text);
bool fkv_tparser_at_word(const fkv_tparser *p, const char *word);
bool fkv_tparser_at_sign(const fkv_tparser *p, const char *sign);
/* Reads the word or sign if it is there. */
fkv_status fkv_tparser_skip(fkv_tparser *p, fkv_ttoken_kind kind, const char *text, bool *skipped);
/* Reads it, or fails. */
fkv_status fkv_tparser_expect(fkv_tparser *p, fkv_ttoken_kind kind, const char *text);
/* Reads any word. */
fkv_status fkv_tparser_word(fkv_tparser *p, fkv_tvalue *out);

/* Around what nests. */
fkv_status fkv_tparser_enter(fkv_tparser *p);
void fkv_tparser_leave(fkv_tparser *p);

fkv_status fkv_tparser_node(fkv_tparser *p, fkv_tkind kind, fkv_tnode **out);
/* The number of a variable's name. */
fkv_status fkv_tparser_name(fkv_tparser *p, fkv_tvalue word, int *number);
/* Puts a node at the end of a list; returns the new end. */
fkv_tnode **fkv_tnode_append(fkv_tnode **end, fkv_tnode *node);

#endif
