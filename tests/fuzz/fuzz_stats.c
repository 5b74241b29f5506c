/* stats.json of an earlier run from anywhere: the readers refuse it, naming the file, and give nothing, or
 * what can be reckoned with: counts that can be added to, a series that never falls, texts that a page may
 * show. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "jobs/stats_run.h"
#include "runner/base/utf8.h"
#include "tests/fuzz/json_mutator.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(int ok, const char *what)
{
    if (ok) return;
    fprintf(stderr, "%s\n", what);
    abort();
}

static void check_counts(const fkv_stats_history *h)
{
    const int64_t most = (int64_t)1 << 53;
    const fkv_stats_sums *s = &h->sums;
    const int64_t counts[] = {h->done,
                              s->runs,
                              s->prompt_tokens,
                              s->completion_tokens,
                              s->energy_runs,
                              s->last_success,
                              fkv_error_counts_sum(&h->errors)};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        must(counts[i] >= 0 && counts[i] <= most, "a count");
    for (int i = 0; i < FKV_STAGES; i++) must(isfinite(s->seconds[i]) && s->seconds[i] >= 0, "a time");
    must(isfinite(s->joules) && s->joules >= 0 && isfinite(s->gpu_seconds) && s->gpu_seconds >= 0,
         "an energy");
    must(h->errors.n >= 0 && h->errors.n <= FKV_ERROR_CODES, "codes");
    for (int i = 0; i < h->errors.n; i++)
        must(fkv_error_code_is_one(h->errors.at[i].code, strlen(h->errors.at[i].code)), "a code");
}

static void check_run(const char *path)
{
    const double most = (double)((int64_t)1 << 53);
    fkv_stats_run *x;
    fkv_err err = {0};
    if (fkv_stats_run_read(path, &x, &err)) {
        must(!x && err.status == FKV_E_INPUT && !strcmp(err.file, path) && err.message[0],
             "a run that is refused");
        return;
    }
    const fkv_stats *s = &x->stats;
    const char *const texts[] = {x->host, x->system, x->backend, x->device, x->version};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        must(fkv_utf8_span(texts[i], strlen(texts[i])) == strlen(texts[i]), "a text");
    for (int i = 0; i < FKV_STAGES; i++)
        must(isfinite(s->seconds[i]) && s->seconds[i] >= 0, "a time of a run");
    must(s->n_points >= 0 && s->n_points <= FKV_STATS_POINTS && s->n_ranks <= FKV_STATS_RUN_RANKS, "a list");
    for (int i = 0; i < s->n_points; i++)
        must(s->points[i].seconds >= (i ? s->points[i - 1].seconds : 0) && s->points[i].seconds <= most &&
                 s->points[i].records >= (i ? s->points[i - 1].records : 0),
             "a series");
    for (int k = 0; k < FKV_STATS_LENGTHS; k++)
        must(s->prompts->at[k] >= 0 && s->answers->at[k] >= 0, "lengths");
    free(x);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const fkv_stats_history none;
    static int fd = -1;
    static char path[64];
    fkv_stats_history h;
    fkv_err err = {0};
    if (fd < 0) {
        fd = memfd_create("stats.json", 0);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    must(ftruncate(fd, 0) == 0 && pwrite(fd, data, size, 0) == (ssize_t)size, "cannot fill the file");
    check_run(path);
    if (fkv_stats_read(path, &h, &err)) {
        must(err.status == FKV_E_INPUT && !strcmp(err.file, path) && err.message[0],
             "an error without its place");
        must(!memcmp(&h, &none, sizeof h), "a history of a file that is refused");
        return 0;
    }
    check_counts(&h);
    return 0;
}
