/* Devices of one world meet: what each has written is there for all, sums are those of one
 * device, and a device that never comes does not hold the others. On cuda with more
 * devices several of these share one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "engine/team.h"
#include "kernels/backend.h"
#include "runner/base/hash.h"

enum { MAX_DEVICES = 3, MAX_RANKS = 5, MAX_LOCAL = 2 };

static const fkv_backend *backend;
static int n_devices = MAX_DEVICES;

/* Devices have two ranks and one in turns. */
static int first_rank(int d)
{
    return (3 * d + 1) / 2;
}

typedef struct world {
    fkv_world *world;
    fkv_team *team;
    fkv_device *devices[MAX_DEVICES];
    void *buf[MAX_DEVICES], *partials[MAX_DEVICES], *owner[MAX_DEVICES];
    fkv_device_info info;
    size_t bytes;

    /* of the collective under way */
    int64_t n, stride, hidden;
    int64_t cols[MAX_DEVICES + 1];
    int elem_bytes, n_heads;
    int64_t row_elems;
    uint8_t *owners;
    float *all_partials; /* [ranks][n, hidden] */
    char *expected;      /* what every device shall hold */
    char *got[MAX_DEVICES];
    bool aside; /* whether it goes beside other work */
    int absent; /* device that fails instead of coming, or -1 */
} world;

static void abort_all(void *ctx)
{
    const world *w = ctx;
    backend->world_abort(w->world);
}

static fkv_status open_device(void *ctx, int d, fkv_err *err)
{
    world *w = ctx;
    fkv_status s = backend->open(w->world, d, 1, &w->devices[d], err);
    if (s) return s;
    s = backend->alloc(w->devices[d], w->bytes, &w->buf[d], err);
    if (!s) s = backend->alloc(w->devices[d], MAX_LOCAL * 2 * w->bytes, &w->partials[d], err);
    if (!s) s = backend->alloc(w->devices[d], 1 << 16, &w->owner[d], err);
    if (d == 0) backend->info(w->devices[d], &w->info);
    return s;
}

/* bytes: of a device's buffer; its partials have twice as many a rank. */
static void open_world(world *w, size_t bytes)
{
    fkv_err err = {0};
    *w = (world){.bytes = bytes, .absent = -1};
    assert_int_equal(backend->world_open(&(fkv_group){.n_devices = n_devices}, &w->world, &err), FKV_OK);
    assert_int_equal(fkv_team_open(n_devices, "device", abort_all, w, &w->team, &err), FKV_OK);
    if (fkv_team_run(w->team, open_device, w, &err)) fail_msg("%s", err.message);
    w->expected = malloc(bytes);
    w->owners = malloc(1 << 16);
    w->all_partials = malloc(2 * MAX_RANKS * bytes);
    assert_non_null(w->expected);
    assert_non_null(w->owners);
    assert_non_null(w->all_partials);
    for (int d = 0; d < n_devices; d++) assert_non_null(w->got[d] = malloc(bytes));
}

static void close_world(world *w)
{
    fkv_team_close(w->team);
    for (int d = 0; d < n_devices; d++) {
        backend->close(w->devices[d]);
        free(w->got[d]);
    }
    backend->world_close(w->world);
    free(w->all_partials);
    free(w->owners);
    free(w->expected);
}

static void fill(void *to, size_t bytes, uint64_t seed)
{
    for (size_t i = 0; i + 8 <= bytes; i += 8) {
        const uint64_t r = fkv_random_u64(seed, 1, i);
        memcpy((char *)to + i, &r, 8);
    }
}

/* Rows of so many bytes: a device has its own part of each, what nobody writes, and something else. */
static char *other_bytes(size_t bytes)
{
    char *part = malloc(bytes);
    assert_non_null(part);
    return memset(part, 0x5a, bytes);
}

static void begin(const world *w, int d)
{
    if (w->aside) backend->aside_begin(w->devices[d]);
}

static void end(const world *w, int d)
{
    if (w->aside) backend->aside_wait(w->devices[d], backend->aside_end(w->devices[d]));
}

static fkv_status gather_cols(void *ctx, int d, fkv_err *err)
{
    world *w = ctx;
    const size_t row = (size_t)(w->stride * w->elem_bytes), bytes = (size_t)w->n * row;
    const size_t from = (size_t)(w->cols[d] * w->elem_bytes), to = (size_t)(w->cols[d + 1] * w->elem_bytes);
    const size_t tail = (size_t)(w->cols[n_devices] * w->elem_bytes);
    char *part = other_bytes(bytes);
    for (size_t at = 0; at < bytes; at += row) {
        memcpy(part + at + from, w->expected + at + from, to - from);
        memcpy(part + at + tail, w->expected + at + tail, row - tail);
    }
    backend->upload(w->devices[d], w->buf[d], part, bytes);
    free(part);
    begin(w, d);
    backend->gather_cols(w->devices[d], w->buf[d], w->n, w->stride, w->cols, w->elem_bytes);
    end(w, d);
    backend->download(w->devices[d], w->got[d], w->buf[d], bytes);
    return backend->sync(w->devices[d], err);
}

static void everyone_has_all(world *w, fkv_team_body *body, size_t bytes)
{
    fkv_err err = {0};
    if (fkv_team_run(w->team, body, w, &err)) fail_msg("%s", err.message);
    for (int d = 0; d < n_devices; d++) assert_memory_equal(w->got[d], w->expected, bytes);
}

static void columns_are_gathered(void **state)
{
    (void)state;
    world w;
    /* rows, columns, of which the last belong to nobody; even and odd, one device without any,
     * more bytes than a window of the cuda backend */
    static const struct {
        int64_t n, cols[MAX_DEVICES + 1], stride;
        int elem_bytes;
    } cases[] = {
        {5, {0, 32, 64, 96}, 96, 4},         {5, {0, 32, 64, 96}, 96, 2},
        {7, {0, 3, 10, 17}, 19, 4},          {7, {0, 3, 10, 17}, 19, 2},
        {1, {0, 0, 40000, 40000}, 40000, 4}, {2100, {0, 1024, 2048, 4096}, 4096, 4},
        {3, {0, 8, 16, 32}, 40, 2},
    };
    open_world(&w, 35 << 20);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const size_t bytes = (size_t)(cases[i].n * cases[i].stride * cases[i].elem_bytes);
        if (cases[i].elem_bytes == 2 && w.info.act_bytes != 2) continue;
        w.n = cases[i].n;
        w.stride = cases[i].stride;
        w.elem_bytes = cases[i].elem_bytes;
        for (int d = 0; d < n_devices; d++) w.cols[d] = cases[i].cols[d];
        w.cols[n_devices] = cases[i].cols[MAX_DEVICES];
        fill(w.expected, bytes, i);
        for (int times = 0; times < 6; times++) {
            w.aside = times % 3 == 1 || times == 5;
            everyone_has_all(&w, gather_cols, bytes);
        }
    }
    close_world(&w);
}

static fkv_status gather_heads(void *ctx, int d, fkv_err *err)
{
    world *w = ctx;
    const size_t row = (size_t)w->row_elems * (size_t)w->info.act_bytes;
    const size_t n_cells = (size_t)w->n * (size_t)w->n_heads, bytes = n_cells * row;
    char *part = other_bytes(bytes);
    for (size_t cell = 0; cell < n_cells; cell++) {
        const size_t head = cell % (size_t)w->n_heads, slot = cell / (size_t)w->n_heads;
        if (w->owners[head * (size_t)w->n + slot] == d)
            memcpy(part + cell * row, w->expected + cell * row, row);
    }
    backend->upload(w->devices[d], w->buf[d], part, bytes);
    free(part);
    backend->upload(w->devices[d], w->owner[d], w->owners, n_cells);
    backend->gather_heads(w->devices[d], w->buf[d], (int)w->n, w->n_heads, w->row_elems, w->owners,
                          w->owner[d]);
    backend->download(w->devices[d], w->got[d], w->buf[d], bytes);
    return backend->sync(w->devices[d], err);
}

static void heads_are_gathered_from_their_owners(void **state)
{
    (void)state;
    static const int shapes[][3] = {{1, 4, 64}, {5, 3, 128}, {64, 8, 512}, {200, 8, 1024}};
    world w;
    open_world(&w, 8 << 20);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        w.n = shapes[i][0];
        w.n_heads = shapes[i][1];
        w.row_elems = shapes[i][2];
        const size_t bytes = (size_t)(w.n * w.n_heads * w.row_elems * w.info.act_bytes);
        for (int many = 0; many < 2; many++) { /* owners: the first and the last device, then all */
            for (int k = 0; k < w.n * w.n_heads; k++)
                w.owners[k] = (uint8_t)(many ? (int)(fkv_random_u64(3, i, (uint64_t)k) % (uint64_t)n_devices)
                                             : k % 2 * (n_devices - 1));
            fill(w.expected, bytes, 100 + i);
            for (int times = 0; times < 3; times++) everyone_has_all(&w, gather_heads, bytes);
        }
    }
    close_world(&w);
}

static fkv_status reduce(void *ctx, int d, fkv_err *err)
{
    world *w = ctx;
    const size_t n = (size_t)(w->n * w->hidden);
    const int n_local = first_rank(d + 1) - first_rank(d);
    backend->upload(w->devices[d], w->partials[d], w->all_partials + (size_t)first_rank(d) * n,
                    (size_t)n_local * n * sizeof(float));
    begin(w, d);
    backend->reduce_ranks(w->devices[d], w->partials[d], n_local, w->n, w->hidden, w->buf[d]);
    end(w, d);
    backend->download(w->devices[d], w->got[d], w->buf[d], n * (size_t)w->info.act_bytes);
    return backend->sync(w->devices[d], err);
}

/* bf16 of a float, to nearest, ties to even. */
static uint16_t to_bf16(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

static void partial_sums_are_added_in_rank_order(void **state)
{
    (void)state;
    /* few and many bytes: a backend may sum everywhere or share the columns; more than a window */
    static const int64_t shapes[][2] = {{1, 64},     {3, 61},      {64, 1024},
                                        {300, 2052}, {1000, 4097}, {1100, 4096}};
    static const float scales[5] = {0x1p-31f, 0x1p-20f, 0x1p-29f, 1, 0x1p-11f};
    world w;
    open_world(&w, 33 << 20);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        w.n = shapes[i][0];
        w.hidden = shapes[i][1];
        const size_t n = (size_t)(w.n * w.hidden);
        for (size_t k = 0; k < (size_t)first_rank(n_devices) * n; k++)
            w.all_partials[k] = scales[k % 5] * (float)((int32_t)(k * 2654435761u + i) >> 3);
        for (size_t k = 0; k < n; k++) {
            float sum = w.all_partials[k];
            for (size_t r = 1; r < (size_t)first_rank(n_devices); r++) sum += w.all_partials[r * n + k];
            const uint16_t half = to_bf16(sum);
            if (w.info.act_bytes == 4)
                memcpy(w.expected + 4 * k, &sum, 4);
            else
                memcpy(w.expected + 2 * k, &half, 2);
        }
        for (int times = 0; times < 6; times++) {
            w.aside = times % 3 == 1 || times == 5;
            everyone_has_all(&w, reduce, n * (size_t)w.info.act_bytes);
        }
    }
    close_world(&w);
}

static fkv_status come_or_fail(void *ctx, int d, fkv_err *err)
{
    world *w = ctx;
    if (d == w->absent) {
        /* after a while, so that the others wait on the device and not only at its door */
        nanosleep(&(struct timespec){.tv_nsec = 200 * 1000 * 1000}, NULL);
        return fkv_fail(err, FKV_E_DEVICE, "device %d is absent", d);
    }
    return reduce(ctx, d, err);
}

static void an_absent_device_ends_the_others_waits(void **state)
{
    (void)state;
    for (int i = 0; i < 2 * n_devices; i++) {
        const int absent = i / 2;
        world w;
        fkv_err err = {0};
        open_world(&w, 1 << 20);
        w.n = 4;
        w.hidden = 64;
        memset(w.all_partials, 0, (size_t)(first_rank(n_devices) * w.n * w.hidden) * sizeof(float));
        memset(w.expected, 0, (size_t)(w.n * w.hidden) * sizeof(float));
        everyone_has_all(&w, reduce, (size_t)(w.n * w.hidden) * (size_t)w.info.act_bytes);
        w.aside = i % 2;
        w.absent = absent;
        assert_int_equal(fkv_team_run(w.team, come_or_fail, &w, &err), FKV_E_DEVICE);
        assert_non_null(strstr(err.message, "is absent"));
        close_world(&w);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(columns_are_gathered),
        cmocka_unit_test(heads_are_gathered_from_their_owners),
        cmocka_unit_test(partial_sums_are_added_in_rank_order),
        cmocka_unit_test(an_absent_device_ends_the_others_waits),
    };
    const char *name = argc > 1 ? argv[1] : "cpu";
    if (argc > 2) n_devices = atoi(argv[2]);
    if (n_devices < 2 || n_devices > MAX_DEVICES) return 2;
    /* Kernels that wait for others share a GPU with these: nothing may be loaded meanwhile. */
    setenv("FAIRKV_DEVICES_PER_GPU", "3", 0);
    setenv("CUDA_MODULE_LOADING", "EAGER", 0);
    backend = fkv_backend_find(name);
    if (!backend) {
        printf("skipped: %s %s\n", name, fkv_backend_why(name));
        return 77;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
