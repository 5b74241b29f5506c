/* What the files of GPUs that meet share. C++ (CUDA) only.
 *
 * cuda_world.cu has the world; cuda_collective.cu the table's three collectives and the choice
 * between two ways of moving bytes, with the same bits either way:
 * - cuda_peer.cu: kernels store straight into the other GPUs' memory, where every GPU can
 *   reach every other;
 * - cuda_copies.cu: the same for collectives beside other work (aside_begin), by copy engines;
 * - cuda_nccl.cu: packed segments sent and received through NCCL, where not.
 * Both work in windows of fixed size, allocated when a device joins: larger messages go
 * in pieces of rows, so nothing grows and nothing is allocated in a step.
 *
 * The world is its opener's and outlives its devices; a device's part is freed when it leaves
 * (cuda_world_leave), also after a failed join. Not for one device alone, whose bytes move nowhere.
 */
#ifndef FKV_KERNELS_CUDA_COLLECTIVE_H
#define FKV_KERNELS_CUDA_COLLECTIVE_H

#include "kernels/cuda_device.h"

#include <atomic>
#include <pthread.h>
#ifdef FKV_NCCL
#include <nccl.h>
#endif

enum {
    COLLECTIVE_THREADS = 256,
    COLLECTIVE_MAX_DEVICES = 64,
    COLLECTIVE_WINDOW_BYTES = 32 << 20, /* of a device there are two */
    COLLECTIVE_LINES_BYTES = 4 << 20,   /* the same, for messages of half as much (cuda_peer.cu) */
    COLLECTIVE_AHEAD = 8,               /* exchanges over NCCL that may be enqueued */
};

/* A device's state of meetings with its peers, in its own memory. */
struct cuda_meeting {
    uint64_t epoch;                         /* meetings so far */
    uint32_t arrived;                       /* blocks of the kernel under way */
    uint32_t stopped;                       /* the host has said so: nobody waits any more */
    uint64_t flags[COLLECTIVE_MAX_DEVICES]; /* epoch that each device has written its data of, or begun */
};

/* What a device's thread tells the others' of collectives by copies, by their number modulo 2: the next but
 * one begins when all have ended it. */
struct cuda_board {
    std::atomic<uint64_t> said_ready, said_sent; /* numbers, from 1 */
    char *at[2];                                 /* where the others write */
    cudaEvent_t ready[2], sent[2];
};

struct fkv_world {
    fkv_group group;
    int n_devices, n_gpus; /* more devices than GPUs: in tests */
    int gpus[COLLECTIVE_MAX_DEVICES];
    bool peers;    /* every GPU can reach every other's memory */
    bool by_peers; /* and that is how bytes move */
    std::atomic<bool> aborted;
    int *stop; /* pinned: what waiting kernels look at */
    pthread_mutex_t lock;
    pthread_cond_t all_in;
    int n_in;                              /* devices that wait for the others */
    uint64_t round;                        /* times that all have come */
    int n_ranks[COLLECTIVE_MAX_DEVICES];   /* of each device */
    char *windows[COLLECTIVE_MAX_DEVICES]; /* of each device: two halves, and two of lines */
    cuda_meeting *meetings[COLLECTIVE_MAX_DEVICES];
    cuda_board boards[COLLECTIVE_MAX_DEVICES];
#ifdef FKV_NCCL
    ncclUniqueId id;
#endif
};

/* A device's part. */
struct cuda_comm {
    char *windows; /* [2][COLLECTIVE_WINDOW_BYTES], [2][COLLECTIVE_LINES_BYTES] */
    cuda_meeting *meeting;
    int first_rank[COLLECTIVE_MAX_DEVICES + 1]; /* of each device; known from the first reduce on */
#ifdef FKV_NCCL
    ncclComm_t nccl;                      /* NULL where bytes move by peers */
    cudaEvent_t behind[COLLECTIVE_AHEAD]; /* the last exchanges, in turns */
    uint64_t n_exchanges;
#endif
};

static inline unsigned blocks_for(int64_t n, int64_t per_block)
{
    return (unsigned)((n + per_block - 1) / per_block);
}

/* Both ways: one piece, whose bytes fit a window. cols: first column of every device, [n_devices + 1]. */
void cuda_peer_gather_cols(fkv_device *dev, char *buf, int64_t n, int64_t stride, const int64_t *cols,
                           int elem_bytes);
void cuda_peer_gather_heads(fkv_device *dev, bf16 *out, int n, int n_kv_heads, int64_t row_elems,
                            const uint8_t *dev_owner);
/* every_device: all of them sum all columns; else each sums its own, columns [cols[d], cols[d + 1]) of y.
 * Partials of two local ranks lie rank_stride apart. */
void cuda_peer_reduce(fkv_device *dev, const float *partials, int n_local, int64_t rank_stride, int64_t n,
                      int64_t hidden, const int64_t *cols, bool every_device, bf16 *y);

/* cuda_copies.cu: the same beside other work; all rows at once, for reduce as far as both windows hold what
 * comes. Each device sums its own columns. */
void cuda_copies_gather_cols(fkv_device *dev, char *buf, int64_t n, int64_t stride, const int64_t *cols,
                             int elem_bytes);
void cuda_copies_reduce(fkv_device *dev, const float *partials, int n_local, int64_t rank_stride, int64_t n,
                        int64_t hidden, const int64_t *cols, bf16 *y);
void cuda_copies_close(fkv_device *dev);

#ifdef FKV_NCCL
/* cuda_world.cu: keeps the error. */
void cuda_nccl_fail(fkv_device *dev, ncclResult_t e);
/* Ends the communicator's waits on this device. */
void cuda_nccl_abort(fkv_device *dev);
/* Whether the communicator is fine; keeps the error. */
bool cuda_nccl_check(fkv_device *dev);
/* cuda_nccl.cu */
fkv_status cuda_nccl_join(fkv_device *dev, fkv_err *err);
void cuda_nccl_gather_cols(fkv_device *dev, char *buf, int64_t n, int64_t stride, const int64_t *cols,
                           int elem_bytes);
void cuda_nccl_gather_heads(fkv_device *dev, bf16 *out, int n, int n_kv_heads, int64_t row_elems,
                            const uint8_t *owner, const uint8_t *dev_owner);
void cuda_nccl_reduce(fkv_device *dev, const float *partials, int n_local, int64_t rank_stride, int64_t n,
                      int64_t hidden, const int64_t *cols, bf16 *y);
#endif

#endif
