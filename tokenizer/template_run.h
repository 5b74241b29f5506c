/* A template's statements, carried out: text into the evaluator's buffer. */
#ifndef FKV_TEMPLATE_RUN_H
#define FKV_TEMPLATE_RUN_H

#include "tokenizer/template_eval.h"

/* e has its run, globals, day and out; the rest is set here. */
fkv_status fkv_teval_run(fkv_teval *e, const fkv_tnode *body);

#endif
