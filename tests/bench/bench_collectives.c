/* Times of the collectives between GPUs at the sizes that decode steps and tiles of a prefill have, many in a
 * row, by size.
 *
 * usage: bench_collectives [BACKEND [DEVICES [HIDDEN [KV_HEADS [HEAD_COLS]]]]]     default: cuda 2 4096 8 512
 *   HEAD_COLS: columns of the attention's output that belong to a KV head
 * Prints us a call on the slowest device: gather_cols of bf16 and of float32 rows, gather_heads, reduce_ranks
 * (one rank a device), for so many rows; and the three that stand beside a prefill's products, aside. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/team.h"
#include "kernels/backend.h"
#include "runner/base/clock.h"

enum { MAX_DEVICES = 8, MOST_ROWS = 2048, WARM = 20, REPEATS = 100, N_OPS = 7, FIRST_ASIDE = 4 };

typedef struct bench {
    const fkv_backend *backend;
    fkv_world *world;
    fkv_team *team;
    fkv_device *devices[MAX_DEVICES];
    void *buf[MAX_DEVICES], *partials[MAX_DEVICES], *owner[MAX_DEVICES];
    int n_devices, hidden, kv_heads, head_cols;
    int64_t cols[MAX_DEVICES + 1];
    uint8_t *owners; /* [kv_heads][rows] */
    int op, n;
    double seconds[MAX_DEVICES];
} bench;

static void die(const char *what, const fkv_err *err)
{
    fprintf(stderr, "%s: %s\n", what, err->message);
    exit(1);
}

static void stop(void *ctx)
{
    const bench *b = ctx;
    b->backend->world_abort(b->world);
}

static fkv_status open_one(void *ctx, int d, fkv_err *err)
{
    bench *b = ctx;
    const size_t wide =
        (size_t)(b->hidden > b->kv_heads * b->head_cols ? b->hidden : b->kv_heads * b->head_cols);
    fkv_status st = b->backend->open(b->world, d, 1, &b->devices[d], err);
    if (!st) st = b->backend->alloc(b->devices[d], MOST_ROWS * wide * 4, &b->buf[d], err);
    if (!st) st = b->backend->alloc(b->devices[d], MOST_ROWS * wide * 4, &b->partials[d], err);
    if (!st) st = b->backend->alloc(b->devices[d], (size_t)b->kv_heads * MOST_ROWS, &b->owner[d], err);
    return st;
}

static void call(const bench *b, int d)
{
    const fkv_backend *k = b->backend;
    const uint8_t *dev_owner = b->owner[d];
    const bool aside = b->op >= FIRST_ASIDE;
    if (aside) k->aside_begin(b->devices[d]);
    switch (b->op) {
    case 0:
    case FIRST_ASIDE: k->gather_cols(b->devices[d], b->buf[d], b->n, b->hidden, b->cols, 2); break;
    case 1:
    case FIRST_ASIDE + 1: k->gather_cols(b->devices[d], b->buf[d], b->n, b->hidden, b->cols, 4); break;
    case 2:
        k->gather_heads(b->devices[d], b->buf[d], b->n, b->kv_heads, b->head_cols, b->owners, dev_owner);
        break;
    default: k->reduce_ranks(b->devices[d], b->partials[d], 1, b->n, b->hidden, b->buf[d]); break;
    }
    if (aside) k->aside_wait(b->devices[d], k->aside_end(b->devices[d]));
}

static fkv_status time_one(void *ctx, int d, fkv_err *err)
{
    bench *b = ctx;
    b->backend->upload(b->devices[d], b->owner[d], b->owners, (size_t)b->kv_heads * (size_t)b->n);
    for (int i = 0; i < WARM; i++) call(b, d);
    b->backend->post(b->devices[d]);
    for (int i = 0; i < REPEATS; i++) call(b, d);
    const int64_t ticket = b->backend->post(b->devices[d]);
    const fkv_status st = b->backend->wait(b->devices[d], ticket, err);
    b->seconds[d] = b->backend->ticket_seconds(b->devices[d], ticket);
    return st;
}

int main(int argc, char **argv)
{
    static const char *const names[N_OPS] = {"gather bf16", "gather float32", "gather heads", "reduce",
                                             "bf16, aside", "float32, aside", "reduce, aside"};
    static const int rows[] = {1, 4, 16, 32, 64, 128, 192, 256, 512, 1024, 2048};
    fkv_err err = {0};
    bench b = {.backend = fkv_backend_find(argc > 1 ? argv[1] : "cuda"),
               .n_devices = argc > 2 ? atoi(argv[2]) : 2,
               .hidden = argc > 3 ? atoi(argv[3]) : 4096,
               .kv_heads = argc > 4 ? atoi(argv[4]) : 8,
               .head_cols = argc > 5 ? atoi(argv[5]) : 512};
    if (!b.backend || b.n_devices < 1 || b.n_devices > MAX_DEVICES) {
        fprintf(stderr, "no such backend, or not 1 to %d devices\n", MAX_DEVICES);
        return 1;
    }
    const fkv_group group = {.n_devices = b.n_devices};
    b.owners = malloc((size_t)b.kv_heads * MOST_ROWS);
    for (int d = 0; d <= b.n_devices; d++) b.cols[d] = (int64_t)b.hidden * d / b.n_devices / 8 * 8;
    if (b.backend->world_open(&group, &b.world, &err)) die("world", &err);
    if (fkv_team_open(b.n_devices, "device", stop, &b, &b.team, &err)) die("team", &err);
    if (fkv_team_run(b.team, open_one, &b, &err)) die("open", &err);
    printf("%-16s", "us a call, rows");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) printf("%9d", rows[i]);
    for (b.op = 0; b.op < N_OPS; b.op++) {
        printf("\n%-16s", names[b.op]);
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
            double slowest = 0;
            b.n = rows[i];
            for (int h = 0; h < b.kv_heads; h++)
                memset(b.owners + h * b.n, h * b.n_devices / b.kv_heads, (size_t)b.n);
            if (fkv_team_run(b.team, time_one, &b, &err)) die(names[b.op], &err);
            for (int d = 0; d < b.n_devices; d++)
                if (b.seconds[d] > slowest) slowest = b.seconds[d];
            printf("%9.2f", 1e6 * slowest / REPEATS);
        }
        fflush(stdout);
    }
    printf("\n");
    fkv_team_close(b.team);
    for (int d = 0; d < b.n_devices; d++) b.backend->close(b.devices[d]);
    b.backend->world_close(b.world);
    free(b.owners);
    return 0;
}
