/* Fingerprints: see hash.h. */
#include "runner/base/hash.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

uint64_t fkv_hash(const void *bytes, size_t n, uint64_t seed)
{
    return XXH3_64bits_withSeed(bytes, n, seed);
}

/* The n bytes from offset on, fewer where the file ends. */
static fkv_status read_part(int fd, const char *path, char *part, size_t n, off_t offset, size_t *got,
                            fkv_err *err)
{
    *got = 0;
    while (*got < n) {
        const ssize_t r = pread(fd, part + *got, n - *got, offset + (off_t)*got);
        if (r < 0 && errno == EINTR) continue;
        if (r < 0) return fkv_fail_errno(err, path, "read");
        if (r == 0) break;
        *got += (size_t)r;
    }
    return FKV_OK;
}

/* size -1: the file's. */
static fkv_status hash_ends(const char *path, int64_t size, uint64_t *out, fkv_err *err)
{
    enum { END = 64 * 1024 };
    static _Thread_local char part[END];
    fkv_status st = FKV_OK;
    struct stat sb;
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return fkv_fail_open(err, path);
    if (fstat(fd, &sb)) {
        st = fkv_fail_errno(err, path, "stat");
        goto out;
    }
    const off_t n_bytes = size < 0 ? sb.st_size : (off_t)size;
    const size_t end = n_bytes < END ? (size_t)n_bytes : END;
    uint64_t h = (uint64_t)n_bytes;
    for (int i = 0; i < 2; i++) {
        size_t n;
        if ((st = read_part(fd, path, part, end, i ? n_bytes - (off_t)end : 0, &n, err))) goto out;
        h = fkv_hash(part, n, h);
    }
    *out = h;
out:
    close(fd);
    return st;
}

fkv_status fkv_hash_file_ends(const char *path, uint64_t *out, fkv_err *err)
{
    return hash_ends(path, -1, out, err);
}

fkv_status fkv_hash_file_ends_at(const char *path, int64_t size, uint64_t *out, fkv_err *err)
{
    return hash_ends(path, size, out, err);
}

void fkv_hash_hex(uint64_t h, char out[17])
{
    snprintf(out, 17, "%016llx", (unsigned long long)h);
}

static uint64_t mix(uint64_t x)
{
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9ULL;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebULL;
    return x ^ (x >> 31);
}

uint64_t fkv_random_u64(uint64_t seed, uint64_t stream, uint64_t i)
{
    const uint64_t golden = 0x9e3779b97f4a7c15ULL;
    const uint64_t key = mix(mix(seed + golden) ^ (stream + golden));
    return mix(key + (i + 1) * golden);
}
