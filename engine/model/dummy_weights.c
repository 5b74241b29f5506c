/* Random weights: see dummy_weights.h. */
#include "engine/model/dummy_weights.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "runner/base/float16.h"
#include "runner/base/hash.h"
#include "runner/base/mem.h"

/* Bytes; a multiple of every page size. Small: it is filled before anything else happens. */
enum { BLOCK = 4 << 20 };

/* Pairs of normal numbers (Box and Muller 1958). */
static void fill(uint16_t *x, size_t n, uint64_t seed)
{
    for (size_t i = 0; i + 1 < n; i += 2) {
        const uint64_t r = fkv_random_u64(seed, 0x64756d6d79, i);
        const float u = ((float)(r >> 40) + 1) * 0x1p-24f, v = (float)(r & 0xffffff) * 0x1p-24f;
        const float radius = 0.02f * sqrtf(-2 * logf(u)), angle = 6.2831853f * v;
        x[i] = fkv_bf16_from_f32(radius * cosf(angle));
        x[i + 1] = fkv_bf16_from_f32(radius * sinf(angle));
    }
}

fkv_status fkv_dummy_weights_open(uint64_t seed, size_t max_tensor, size_t max_vector, fkv_dummy_weights *w,
                                  fkv_err *err)
{
    fkv_status st = FKV_OK;
    size_t need;
    void *block = MAP_FAILED;
    *w = (fkv_dummy_weights){0};
    /* a block more, so that every tensor can start anywhere in the first */
    if (!fkv_mul_size(max_tensor, 2, &need) || !fkv_add_size(need, (size_t)2 * BLOCK, &need))
        return fkv_fail_memory(err);
    need -= need % BLOCK;
    const int fd = memfd_create("dummy-weights", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, BLOCK)) {
        st = fkv_fail_errno(err, NULL, "dummy weights");
        goto out;
    }
    block = mmap(NULL, BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    void *all = mmap(NULL, need, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (all != MAP_FAILED) *w = (fkv_dummy_weights){.bytes = all, .n_bytes = need};
    w->ones = fkv_calloc(max_vector, sizeof *w->ones);
    if (block == MAP_FAILED || !w->bytes || !w->ones) {
        st = fkv_fail_memory(err);
        goto out;
    }
    fill(block, BLOCK / 2, seed);
    for (size_t i = 0; i < max_vector; i++) w->ones[i] = 0x3f80;
    for (size_t at = 0; !st && at < need; at += BLOCK)
        if (mmap(w->bytes + at, BLOCK, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
            st = fkv_fail_errno(err, NULL, "dummy weights");
out:
    if (block != MAP_FAILED) munmap(block, BLOCK);
    if (fd >= 0) close(fd);
    if (st) fkv_dummy_weights_close(w);
    return st;
}

const void *fkv_dummy_weights_get(const fkv_dummy_weights *w, const char *name, int n_dims)
{
    if (n_dims == 1) return w->ones;
    const uint64_t start = fkv_hash(name, strlen(name), 0) % (BLOCK / 512);
    return w->bytes + start * 512;
}

void fkv_dummy_weights_close(fkv_dummy_weights *w)
{
    if (w->bytes) munmap(w->bytes, w->n_bytes);
    free(w->ones);
    *w = (fkv_dummy_weights){0};
}
