/* stats.json of an earlier run from anywhere: the reader refuses it, naming the file, and gives an empty
 * history, or gives counts that can be added to. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "jobs/stats.h"
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
    if (fkv_stats_read(path, &h, &err)) {
        must(err.status == FKV_E_INPUT && !strcmp(err.file, path) && err.message[0],
             "an error without its place");
        must(!memcmp(&h, &none, sizeof h), "a history of a file that is refused");
        return 0;
    }
    check_counts(&h);
    return 0;
}
