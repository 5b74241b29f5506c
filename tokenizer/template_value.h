/* The values of a template, as Python has them, and the limits of the rendering that holds them.
 *
 * All of it lives in the rendering's arena, in the parsed template or in the JSON that was given;
 * nothing is freed singly. Values don't change once they are seen by a template, but for a
 * namespace's members. Not for: how they print (template_text.h), operators (template_operator.h). */
#ifndef FKV_TEMPLATE_VALUE_H
#define FKV_TEMPLATE_VALUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runner/base/buf.h"
#include "runner/base/status.h"
#include "tokenizer/template_arena.h"

enum {
    FKV_TEMPLATE_DEPTH = 100,  /* of brackets and blocks, of values in values, of macros that call macros */
    FKV_TEMPLATE_STACK = 1000, /* of expressions and blocks under evaluation, over all macros */
    FKV_TEMPLATE_STEPS = 10000000,  /* of a rendering */
    FKV_TEMPLATE_BYTES_A_STEP = 256 /* that are looked at or copied */
};

/* What a template or a rendering may use, and where it says what is wrong. */
typedef struct fkv_trun {
    fkv_tarena arena;
    int64_t steps;    /* left */
    int depth;        /* of what is parsed or evaluated at the moment */
    int nest;         /* of the values that are printed or compared at the moment */
    int line;         /* of the template */
    const char *file; /* that is parsed, which errors name; NULL: a rendering, whose errors stand alone */
    fkv_err *err;
} fkv_trun;

/* FKV_E_INPUT with the template's line. */
fkv_status fkv_trun_fail(fkv_trun *run, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Why fkv_tarena_take gave nothing. */
fkv_status fkv_trun_no_room(fkv_trun *run);
/* Counts a step and the bytes that it looks at. */
fkv_status fkv_trun_step(fkv_trun *run, size_t bytes);
/* Around what recurses over values: fails when they are nested too deeply. */
fkv_status fkv_trun_enter(fkv_trun *run);
void fkv_trun_leave(fkv_trun *run);
/* Appends to a buffer, whose bytes count against the arena's limit. */
fkv_status fkv_trun_put(fkv_trun *run, fkv_buf *out, const char *text, size_t n);

typedef enum fkv_ttype {
    FKV_T_UNDEFINED,
    FKV_T_NONE,
    FKV_T_BOOL,
    FKV_T_INT,
    FKV_T_FLOAT,
    FKV_T_STRING,
    FKV_T_LIST,
    FKV_T_TUPLE,
    FKV_T_DICT,
    FKV_T_VIEW, /* of a dict: its items, keys or values */
    FKV_T_RANGE,
    FKV_T_STREAM, /* Python's generator: what map and select give */
    FKV_T_NAMESPACE,
    FKV_T_MACRO,
    FKV_T_FUNCTION,
    FKV_T_METHOD,
    FKV_T_LOOP,
} fkv_ttype;

/* What an undefined value is called in messages. */
enum { FKV_T_BY_NAME, FKV_T_BY_REASON, FKV_T_BY_OWNER /* plus the type whose attribute it would be */ };
enum { FKV_T_ITEMS, FKV_T_KEYS, FKV_T_VALUES }; /* of a view */

typedef struct fkv_tvalue {
    uint8_t type; /* fkv_ttype */
    uint8_t flag; /* a string: is Markup; a view, an undefined: see above; a function, a method: which */
    uint32_t n;   /* bytes of a string, or of the name of what is undefined */
    union {
        bool b;
        int64_t i;
        double f;
        const char *s;                /* string, undefined; not NUL-terminated */
        struct fkv_tlist *list;       /* list, tuple */
        struct fkv_tdict *dict;       /* dict, view, namespace */
        struct fkv_trange *range;     /* range */
        struct fkv_tstream *stream;   /* stream */
        const struct fkv_tvalue *box; /* method: its object */
        void *p;                      /* macro, loop: the evaluator's */
    };
} fkv_tvalue;

typedef struct fkv_tlist {
    size_t n, cap;
    fkv_tvalue *at; /* [n] */
} fkv_tlist;

typedef struct fkv_tentry {
    fkv_tvalue key, value;
} fkv_tentry;

/* In the order of insertion. */
typedef struct fkv_tdict {
    size_t n, cap;
    fkv_tentry *at;   /* [n] */
    uint32_t *places; /* [n_places]: index into at plus one; NULL while there are few entries */
    size_t n_places;  /* a power of two */
} fkv_tdict;

typedef struct fkv_trange {
    int64_t start, stop, step, n;
} fkv_trange;

typedef struct fkv_titer {
    fkv_tvalue of;
    size_t at; /* next item, entry, byte */
} fkv_titer;

/* One item at a time, computed when it is asked for. */
typedef struct fkv_tstream {
    fkv_status (*next)(fkv_trun *run, struct fkv_tstream *s, fkv_tvalue *item, bool *more);
    fkv_titer source;
    bool begun, ended;
    void *state; /* next's */
} fkv_tstream;

/* Arguments of a call, a filter or a test. */
typedef struct fkv_targs {
    size_t n, n_named;
    fkv_tvalue *at;    /* [n] */
    fkv_tentry *named; /* [n_named]: keys are strings */
} fkv_targs;

/* Constructors that take no memory. */
fkv_tvalue fkv_tv_undefined(const char *reason);
fkv_tvalue fkv_tv_missing(fkv_tvalue of, fkv_tvalue name);
fkv_tvalue fkv_tv_none(void);
fkv_tvalue fkv_tv_bool(bool b);
fkv_tvalue fkv_tv_int(int64_t i);
fkv_tvalue fkv_tv_float(double f);
fkv_tvalue fkv_tv_text(const char *literal);
fkv_tvalue fkv_tv_view(fkv_tdict *dict, int what);
bool fkv_tv_is(fkv_tvalue v, const char *text); /* a string of these bytes */

/* A string of n bytes to be filled; *bytes is where. */
fkv_status fkv_tv_new_string(fkv_trun *run, size_t n, char **bytes, fkv_tvalue *out);
/* A string that borrows its bytes. */
fkv_status fkv_tv_borrow(fkv_trun *run, const char *s, size_t n, fkv_tvalue *out);
fkv_status fkv_tv_copy_string(fkv_trun *run, const char *s, size_t n, fkv_tvalue *out);
/* An empty list or tuple with room for cap items. */
fkv_status fkv_tv_new_list(fkv_trun *run, fkv_ttype type, size_t cap, fkv_tvalue *out);
fkv_status fkv_tlist_push(fkv_trun *run, fkv_tlist *l, fkv_tvalue item);
fkv_status fkv_tv_pair(fkv_trun *run, fkv_tvalue a, fkv_tvalue b, fkv_tvalue *tuple);
/* An empty dict or namespace. */
fkv_status fkv_tv_new_dict(fkv_trun *run, fkv_ttype type, fkv_tvalue *out);

/* Replaces what the key has. A key that is a list or a dict is an error. */
fkv_status fkv_tdict_set(fkv_trun *run, fkv_tdict *d, fkv_tvalue key, fkv_tvalue value);
/* *out is NULL where there is no such key. */
fkv_status fkv_tdict_get(fkv_trun *run, const fkv_tdict *d, fkv_tvalue key, fkv_tentry **out);

/* Python's name of a type, for messages. */
const char *fkv_tv_type(fkv_tvalue v);
/* FKV_E_INPUT that says why an undefined value can't be used. */
fkv_status fkv_trun_fail_undefined(fkv_trun *run, fkv_tvalue v);

bool fkv_tv_truth(fkv_tvalue v);
/* bool, int: *i, as Python's numbers. */
bool fkv_tv_as_int(fkv_tvalue v, int64_t *i);
bool fkv_tv_as_float(fkv_tvalue v, double *f); /* those and float */
/* -1 where it has no length. Characters of a string. */
fkv_status fkv_tv_length(fkv_trun *run, fkv_tvalue v, int64_t *n);

fkv_status fkv_tv_equal(fkv_trun *run, fkv_tvalue a, fkv_tvalue b, bool *equal);
/* -1, 0, 1; 2 where neither is (NaN). What Python does not order is an error that names op. */
fkv_status fkv_tv_order(fkv_trun *run, fkv_tvalue a, fkv_tvalue b, const char *op, int *order);

bool fkv_tv_iterable(fkv_tvalue v);
fkv_status fkv_titer_start(fkv_trun *run, fkv_tvalue v, fkv_titer *it);
/* *more is false at the end. */
fkv_status fkv_titer_next(fkv_trun *run, fkv_titer *it, fkv_tvalue *item, bool *more);
/* A list of all that is left. */
fkv_status fkv_tv_collect(fkv_trun *run, fkv_tvalue v, fkv_ttype type, fkv_tvalue *out);

/* Puts arguments in the order of names ("a b c"), those that are not given UNDEFINED with n 0 and
 * s NULL (fkv_targ_given). Too many and unknown ones are errors that name what. */
fkv_status fkv_targs_bind(fkv_trun *run, const fkv_targs *args, const char *what, const char *names,
                          size_t n_required, fkv_tvalue *out);
bool fkv_targ_given(fkv_tvalue v);

#endif
