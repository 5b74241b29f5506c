/* The journal's loader on any bytes: whatever it accepts, it can read back, add
 * to, rewrite and load again with the same rows. */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "jobs/journal.h"
#include "runner/base/file.h"
#include "runner/base/hash.h"

enum { IDENTITY = 7, FILE_HEADER = 32, HEADER = 64 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool ok, const char *what)
{
    if (ok) return;
    fprintf(stderr, "%s\n", what);
    abort();
}

static void work(const char *path)
{
    fkv_journal *j = NULL;
    fkv_err err = {0};
    fkv_buf row = {0};
    int64_t dropped;
    const fkv_journal_entry *entries;
    if (fkv_journal_open(path, IDENTITY, &j, &dropped, &err)) {
        check(!j && (err.status == FKV_E_INPUT || err.status == FKV_E_SYSTEM), "an error without a status");
        return;
    }
    const size_t n = fkv_journal_range(j, 0, INT64_MAX, &entries);
    check(n == fkv_journal_count(j), "entries beyond the range of ordinals");
    for (size_t i = 0; i < n; i++) {
        check(i == 0 || entries[i - 1].ordinal < entries[i].ordinal, "entries out of order");
        check(fkv_journal_read(j, &entries[i], &row, &err) == FKV_OK, "a loaded row can't be read");
    }
    const int64_t extra = n ? entries[n - 1].ordinal / 2 : 3;
    check(fkv_journal_add(j, extra, "row\n", 4, true, 1, 2, &err) == FKV_OK, "add");
    const size_t have = fkv_journal_count(j);
    const int64_t errors = fkv_journal_errors(j);
    check(fkv_journal_compact(j, true, &err) == FKV_OK, "compact");
    fkv_journal_close(j);
    check(fkv_journal_open(path, IDENTITY, &j, &dropped, &err) == FKV_OK && dropped == 0, "open again");
    check(fkv_journal_count(j) == have && fkv_journal_errors(j) == errors, "rows were lost");
    check(fkv_journal_range(j, extra, extra + 1, &entries) == 1, "the added row is gone");
    check(fkv_journal_read(j, entries, &row, &err) == FKV_OK && row.len == 4, "the added row changed");
    fkv_journal_close(j);
    fkv_buf_free(&row);
}

/* Puts right the hashes of what looks like entries, which mutation would never
 * find; byte 5 of a header says whether to leave its (1) or its row's (2) wrong. */
static void seal(uint8_t *bytes, size_t size)
{
    for (size_t at = FILE_HEADER; at < size && size - at >= HEADER;) {
        uint8_t *h = bytes + at;
        uint64_t length, ordinal, hash;
        memcpy(h,
               "\xff"
               "FK"
               "\xfe",
               4);
        if (!(h[5] & 4)) memset(h + 18, 0, 6); /* short rows mostly */
        memcpy(&ordinal, h + 8, 8);
        memcpy(&length, h + 16, 8);
        const bool fits = length <= size - at - HEADER;
        if (fits && !(h[5] & 2)) {
            hash = fkv_hash(h + HEADER, (size_t)length, ordinal);
            memcpy(h + 48, &hash, 8);
        }
        if (!(h[5] & 1)) {
            hash = fkv_hash(h, 56, IDENTITY);
            memcpy(h + 56, &hash, 8);
        }
        if (!fits) break;
        at += HEADER + (size_t)length;
    }
}

static void with_file(const char *path, const uint8_t *data, size_t size)
{
    fkv_err err = {0};
    const int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) return;
    const fkv_status st = fkv_write_all(fd, data, size, path, &err);
    close(fd);
    if (!st) work(path);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char dir[] = "/dev/shm/fkv-fuzz-XXXXXX", other[] = "/tmp/fkv-fuzz-XXXXXX", path[64];
    const char *made = mkdtemp(dir) ? dir : mkdtemp(other);
    if (!made) return 0;
    snprintf(path, sizeof path, "%s/journal", made);
    with_file(path, data, size);
    uint8_t *sealed = size > FILE_HEADER ? malloc(size) : NULL;
    if (sealed) {
        memcpy(sealed, data, size);
        memcpy(sealed, "FKVJRNL\n\1\0\0\0\x20\0\0\0\7\0\0\0\0\0\0\0", 24);
        const uint64_t hash = fkv_hash(sealed, 24, 0);
        memcpy(sealed + 24, &hash, 8);
        seal(sealed, size);
        with_file(path, sealed, size);
        free(sealed);
    }
    unlink(path);
    rmdir(made);
    return 0;
}
