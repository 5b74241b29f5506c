/* The caller's side of a run that looks at no answer: every request runs to its end, and one that is rejected
 * ends the run. */
#ifndef FKV_TESTS_IO_FIXTURE_H
#define FKV_TESTS_IO_FIXTURE_H

#include "engine/engine.h"

static inline bool on_token(void *ctx, const fkv_request *q, const int32_t *ids, int64_t n)
{
    (void)ctx, (void)q, (void)ids, (void)n;
    return false;
}

static inline fkv_status on_finish(void *ctx, const fkv_request *q, const int32_t *ids, int64_t n,
                                   fkv_finish why, fkv_err *err)
{
    (void)ctx, (void)q, (void)ids, (void)n, (void)why, (void)err;
    return FKV_OK;
}

static inline fkv_status on_reject(void *ctx, const fkv_request *q, const char *code, const fkv_err *why,
                                   fkv_err *err)
{
    (void)ctx, (void)q, (void)code;
    *err = *why;
    return why->status;
}

static inline fkv_stopping stopping(void *ctx)
{
    (void)ctx;
    return FKV_GO_ON;
}

#endif
