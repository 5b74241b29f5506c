/* plan.json from anywhere: the reader refuses it, or gives a plan that holds,
 * and that reads back the same after it was written. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/plan/plan.h"
#include "runner/base/file.h"
#include "runner/layout.h"
#include "tests/fuzz/json_mutator.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(int ok, const char *what)
{
    if (ok) return;
    fprintf(stderr, "%s\n", what);
    abort();
}

/* The file is kept in memory, under a name that can be opened. */
static void put(int fd, const void *bytes, size_t n)
{
    must(ftruncate(fd, 0) == 0 && pwrite(fd, bytes, n, 0) == (ssize_t)n, "cannot fill the file");
}

static void check_round_trip(const fkv_plan *plan, const char *fingerprint)
{
    static char dir[] = "/tmp/fuzz-plan-XXXXXX", path[64];
    fkv_plan back;
    fkv_err err = {0};
    char *again = NULL;
    must(mkdtemp(dir) != NULL, "no folder");
    snprintf(path, sizeof path, "%s/plan.json", dir);
    must(!fkv_plan_write(plan, fingerprint, NULL, path, &err), err.message);
    must(!fkv_plan_read(path, &back, &again, &err), err.message);
    const int pairs = plan->n_layers * plan->n_kv_heads;
    must(!strcmp(again, fingerprint), "the fingerprint changed");
    must(back.first[pairs] == plan->first[pairs] &&
             !memcmp(back.at, plan->at, (size_t)plan->first[pairs] * sizeof *plan->at),
         "the placements changed");
    must(back.standard_us == plan->standard_us && back.best_effort_us == plan->best_effort_us &&
             back.fair_copying_us == plan->fair_copying_us && back.lower_bound_us == plan->lower_bound_us,
         "the predictions changed");
    fkv_plan_free(&back);
    free(again);
    unlink(path);
    rmdir(dir);
    memcpy(dir + sizeof dir - 7, "XXXXXX", 7);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int fd = -1;
    static char path[64];
    static unsigned n_read;
    if (fd < 0) {
        fd = memfd_create("plan.json", 0);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    put(fd, data, size);

    fkv_plan plan;
    fkv_layout layout = {0};
    fkv_err err = {0}, damage = {0};
    char *fingerprint = NULL;
    if (!fkv_layout_read(path, &layout, &damage))
        must(layout.max_prompt > 0 && layout.max_tokens >= layout.max_prompt && layout.record.pages > 0,
             "a layout out of range");
    else
        must(damage.status == FKV_E_INPUT && !strcmp(damage.file, path),
             "a layout's error without its place");
    if (fkv_plan_read(path, &plan, &fingerprint, &err)) {
        must(err.status == FKV_E_INPUT && !strcmp(err.file, path) && err.message[0],
             "an error without its place");
        must(!plan.first && !plan.at && !fingerprint, "an error that keeps memory");
        return 0;
    }
    fkv_err why = {0};
    must(!fkv_plan_validate(&plan, &why), why.message);
    must(fkv_plan_copies(&plan) >= 0, "copies");
    /* Writing syncs the disk: every plan of a corpus, then one in a thousand. */
    if (n_read++ < 64 || n_read % 1024 == 0) check_round_trip(&plan, fingerprint);
    free(fingerprint);
    fkv_plan_free(&plan);
    return 0;
}
