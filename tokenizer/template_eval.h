/* Evaluation of a template's expressions, and the variables that they see. What needs statements
 * (macros, loops) is asked of template_run.c through two functions. All of it lives in the run's
 * arena. */
#ifndef FKV_TEMPLATE_EVAL_H
#define FKV_TEMPLATE_EVAL_H

#include <time.h>

#include "tokenizer/template_parser.h"

typedef struct fkv_tvariable {
    int name;
    fkv_tvalue value;
} fkv_tvariable;

/* The variables of a block. What is assigned inside is not seen outside. */
typedef struct fkv_tscope {
    struct fkv_tscope *outer;
    size_t n, cap;
    fkv_tvariable *at; /* [n] */
    bool kept;         /* a macro sees it, so that it lives on behind its block */
} fkv_tscope;

typedef enum fkv_tjump { FKV_T_GO_ON, FKV_T_BREAK, FKV_T_CONTINUE } fkv_tjump;

typedef struct fkv_teval {
    fkv_trun run;
    fkv_tvalue *globals; /* [names]: what a name is where no block assigned it */
    fkv_tscope *scope;
    fkv_buf *out;
    const struct tm *day;
    int calls;         /* of macros, at the moment */
    fkv_tjump jump;    /* break or continue is on its way to its loop */
    fkv_tvalue caller; /* the body of the {% call %} that calls now */
    fkv_status (*call_macro)(struct fkv_teval *e, void *macro, const fkv_targs *args, fkv_tvalue *out);
    fkv_status (*loop_member)(struct fkv_teval *e, void *loop, fkv_tvalue name, fkv_tvalue *out);
} fkv_teval;

/* Around what nests while it is evaluated. */
fkv_status fkv_teval_enter(fkv_teval *e, const fkv_tnode *node);
void fkv_teval_leave(fkv_teval *e);

fkv_status fkv_teval_value(fkv_teval *e, const fkv_tnode *node, fkv_tvalue *out);
/* v | a | b: a list of FILTER. */
fkv_status fkv_teval_filters(fkv_teval *e, const fkv_tnode *list, fkv_tvalue v, fkv_tvalue *out);

fkv_status fkv_tscope_new(fkv_teval *e, fkv_tscope *outer, fkv_tscope **out);
fkv_status fkv_tscope_set(fkv_teval *e, fkv_tscope *scope, int name, fkv_tvalue v);
/* The value of a name in the present scope. */
fkv_status fkv_teval_name(fkv_teval *e, int name, fkv_tvalue *out);

#endif
