/* The manifest's loader on any bytes: whatever it accepts is consistent, and is
 * the same after being saved and loaded again. */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "jobs/manifest.h"
#include "runner/base/file.h"
#include "tests/fuzz/json_mutator.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool ok, const char *what)
{
    if (ok) return;
    fprintf(stderr, "%s\n", what);
    abort();
}

static void check_shards(const fkv_manifest *m)
{
    int64_t rows = 0, errors = 0;
    for (size_t i = 0; i < m->n_shards; i++) {
        const fkv_manifest_shard *s = &m->shards[i];
        check(i == 0 || m->shards[i - 1].first + m->shards[i - 1].count <= s->first, "shards overlap");
        check(s->count > 0 && s->count <= m->records_per_shard && s->errors <= s->count, "counts");
        check(s->first == s->index * m->records_per_shard && s->bytes > 0, "a shard's place");
        check(fkv_manifest_find(m, s->index) == s, "a shard can't be found");
        rows += s->count;
        errors += s->errors;
    }
    check(rows == m->n_rows && errors == m->n_errors, "sums");
}

static void work(const char *path)
{
    fkv_manifest a, b;
    fkv_err err = {0};
    uint64_t hash;
    bool changed;
    char tmp[4096];
    snprintf(tmp, sizeof tmp, "%s.tmp", path);
    if (fkv_manifest_load(path, &a, &err)) {
        check(err.status == FKV_E_INPUT || err.status == FKV_E_SYSTEM, "an error without a status");
        check(!a.job && !a.shards && !a.identity && !a.run && !a.archives, "a manifest after an error");
        return;
    }
    check_shards(&a);
    check(fkv_manifest_save(&a, path, tmp, NULL, &err) == FKV_OK, "save");
    check(fkv_manifest_load(path, &b, &err) == FKV_OK, "what was saved can't be loaded");
    check(a.n_shards == b.n_shards && a.complete == b.complete && a.records == b.records,
          "changed by saving");
    check(a.end.records == b.end.records && (a.end.records < 0 || !memcmp(&a.end, &b.end, sizeof a.end)),
          "the end changed by saving");
    check(a.end.records < 0 || (a.end.firm >= 0 && a.end.firm <= a.end.records), "the end");
    check(!a.n_shards || !memcmp(a.shards, b.shards, a.n_shards * sizeof *a.shards),
          "shards changed by saving");
    check(fkv_manifest_same_job(&a, &b, "out", &err) == FKV_OK, "another job after saving");
    check(a.archives ? json_equal(a.archives, b.archives) : !b.archives, "archives changed by saving");
    check(fkv_manifest_hash(&a, &hash, &err) == FKV_OK, "hash");
    const fkv_status st = fkv_manifest_pin(&b, "out", "plan", "0", &changed, &err);
    check(st == FKV_OK || st == FKV_E_INPUT, "pin");
    fkv_manifest_free(&a);
    fkv_manifest_free(&b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char dir[] = "/dev/shm/fkv-fuzz-XXXXXX", other[] = "/tmp/fkv-fuzz-XXXXXX", path[64];
    const char *made = mkdtemp(dir) ? dir : mkdtemp(other);
    fkv_err err = {0};
    if (!made) return 0;
    snprintf(path, sizeof path, "%s/manifest.json", made);
    const int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (fd >= 0) {
        const fkv_status st = fkv_write_all(fd, data, size, path, &err);
        close(fd);
        if (!st) work(path);
    }
    unlink(path);
    rmdir(made);
    return 0;
}
