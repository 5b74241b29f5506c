/* What the engine's files share. Not for other folders: see engine.h. */
#ifndef FKV_ENGINE_STATE_H
#define FKV_ENGINE_STATE_H

#include "engine/engine.h"
#include "engine/kv.h"
#include "engine/memory.h"
#include "engine/schedule.h"
#include "engine/team.h"

/* What config.c accepts at the most. */
enum { FKV_MAX_KV_HEADS = 1024 };

/* One rank's part of one layer. */
typedef struct fkv_rank_layer {
    fkv_weight *qkv; /* home heads, per head Q (group * hd), K, V rows: [n_home * head_rows * hd, hidden] */
    fkv_weight *o;   /* its rows (output columns) of the output projection: [share of hidden, n_heads * hd] */
    fkv_weight *gate_up; /* its share of the intermediate, for SwiGLU */
    fkv_weight *down;    /* the same share as depth: [hidden, share of intermediate] */
    fkv_decode_head *served;
    int n_served;
} fkv_rank_layer;

typedef struct fkv_rank {
    int rank;
    int head0, n_home;     /* home heads */
    fkv_weight *embedding; /* its share of the vocabulary */
    fkv_weight *head;      /* output projection to its share of the vocabulary */
    fkv_rank_layer *layers;
    void *q; /* decode scratch, [max served][n_slots][head_rows * hd] */
} fkv_rank;

/* Edits that a device applies at a time. */
enum { FKV_EDITS = 1 << 16 };

/* One device and the ranks on it. Buffers are device memory; T = rows of the largest pack. */
typedef struct fkv_engine_device {
    fkv_engine *engine;
    fkv_device *dev;
    int index;
    fkv_mark home;  /* home weights; behind it what depends on slots and prompts */
    fkv_mark sized; /* behind it the plan's */
    fkv_rank *ranks;
    int rank0, n_ranks;
    float **norms;  /* [2 * n_layers + 1]: attention and MLP norm of each layer, then the last: [hidden] */
    void *x;        /* prefill residual [T, hidden] */
    void *xn;       /* [T, hidden] normed */
    void *qkv;      /* [T, max home heads * head_rows * hd] of the rank at work */
    void *att;      /* [T, n_heads * hd] */
    void *y;        /* [tile, hidden] */
    void *act;      /* [tile, largest share of intermediate] */
    float *partial; /* [n_ranks][tile][hidden] */
    float *scores;  /* [max home heads][T] */
    void *step_x, *step_xn, *step_att; /* decode: [n_slots, hidden], [n_slots, n_heads * hd] */
    float *logits;                     /* [n_slots, vocab] */
    uint8_t *device_of;                /* of the engine, on the device */
    int32_t *tokens, *positions;       /* [T] of a pack */
    fkv_segment *segments;             /* [n_slots] of a pack */
    fkv_edit *edits;                   /* [FKV_EDITS] */
    fkv_slots slots;
    int64_t tickets[2];   /* of commands, by number */
    int32_t *table;       /* page table */
    int64_t arena_budget; /* bytes that this device's KV arenas may take */
    /* trace.c */
    bool tracing;
    double share_start, share_seconds;
} fkv_engine_device;

/* Sums of traced steps, in seconds: see fkv_engine_trace. */
typedef struct fkv_trace {
    int64_t n_steps;
    double *segment_seconds; /* [n_layers][n_ranks] */
    double layers_seconds, once_seconds;
} fkv_trace;

struct fkv_engine {
    fkv_config config;
    fkv_attention_spec spec; /* of every layer */
    fkv_engine_options options;
    fkv_device_info info;
    fkv_world *world;
    fkv_engine_device *devices;
    fkv_team *team;
    int64_t *hidden_cols; /* [n_devices + 1] columns of the hidden that each device's ranks project */
    int64_t *vocab_cols;
    int64_t *head_cols;                    /* attention columns of each device's home heads */
    int tile;                              /* rows of a prefill tile */
    int max_home;                          /* largest number of home heads of a rank */
    int64_t max_rows;                      /* of a pack */
    int32_t *pack_tokens, *pack_positions; /* [max_rows] of the pack to be enqueued */

    /* with the plan */
    fkv_kv kv;
    void **arenas;      /* [n_ranks] */
    uint8_t *device_of; /* [n_layers][n_kv_heads][n_slots] device of the owner */
    bool planned;
    int64_t copy_bytes, arena_bytes;

    fkv_trace *trace; /* NULL: not tracing */
    bool trace_off;   /* the next step is not one to trace */

    /* stats; of plans that were cleared */
    int64_t decode_steps, kv_peak_bytes;
    double prefill_seconds, decode_seconds;
    fkv_schedule_stats schedule_stats; /* of all runs */
    double *rank_seconds;              /* [n_ranks] */
};

/* Share r of R of n heads: [fkv_share(n, r, R), fkv_share(n, r + 1, R)). */
static inline int64_t fkv_share(int64_t n, int r, int n_ranks)
{
    return n * r / n_ranks;
}

/* The same for columns of hidden, intermediate and vocabulary, in whole units of 128, which the
 * fast products of a GPU and blocks of scales want; of 16 or 1 where there are too few for all
 * ranks. Rank 0 has the largest share: fkv_share_columns(n, 1, R). */
static inline int64_t fkv_share_columns(int64_t n, int r, int n_ranks)
{
    const int64_t unit = n / 128 >= n_ranks ? 128 : n / 16 >= n_ranks ? 16 : 1;
    const int64_t units = (n + unit - 1) / unit, at = (units * r + n_ranks - 1) / n_ranks * unit;
    return at < n ? at : n;
}

/* engine.c */
fkv_kv_view fkv_engine_kv_view(const fkv_engine_device *d);
fkv_memory_shape fkv_engine_memory_shape(const fkv_engine *e);

/* time_steps.c: writes the pages that time_decode will read with such prompts. */
fkv_status fkv_engine_fill_pages(fkv_engine *e, int64_t n_tokens, int64_t max_new, fkv_err *err);

/* weights.c */
fkv_status fkv_weights_load_home(fkv_engine_device *d, const fkv_safetensors *st, fkv_err *err);
/* Fills served of every layer from the plan and loads the copies' weights. */
fkv_status fkv_weights_load_copies(fkv_engine_device *d, const fkv_safetensors *st, const fkv_plan *plan,
                                   fkv_err *err);

/* A pack to be prefilled; its tokens and positions are the engine's pack_tokens and
 * pack_positions. */
typedef struct fkv_prefill {
    const fkv_segment *segments;
    int n_segments;
    int64_t n_rows, n_tiles;
    bool no_scores;     /* only the time counts: leave compression out */
    float *host_scores; /* one segment of slot -1: [n_layers][n_kv_heads][T - window], host */
} fkv_prefill;

/* A pack of one prompt in slot; sets the engine's pack_tokens and pack_positions. */
fkv_prefill fkv_prefill_one(fkv_engine *e, const int32_t *ids, int64_t n_ids, fkv_segment *segment);

/* prefill.c, decode.c: enqueue on one device; every device calls the same. */
void fkv_prefill_enqueue(fkv_engine_device *d, const fkv_prefill *p);
/* dst[index] = value for all of edits (host memory). */
void fkv_edits_enqueue(fkv_engine_device *d, int32_t *dst, const fkv_edit *edits, int64_t n);
/* Arguments of the decode ops of a device's local-th rank in a layer. */
fkv_decode_args fkv_decode_args_of(const fkv_engine_device *d, int local, int layer);
void fkv_decode_run(fkv_engine_device *d);
/* A step's parts in order: begin; every layer's segments and rest; end. */
void fkv_decode_begin(fkv_engine_device *d);
void fkv_decode_segment(fkv_engine_device *d, int local, int layer);
void fkv_decode_rest(fkv_engine_device *d, int layer);
void fkv_decode_end(fkv_engine_device *d);

/* trace.c: a step with its parts timed. */
void fkv_trace_step(fkv_engine_device *d);
/* Around ops that the device's ranks do one after the other, each its share. */
void fkv_trace_share_begin(fkv_engine_device *d);
void fkv_trace_share_end(fkv_engine_device *d);

/* forward.c: what prefill and decode share. All work on n rows; class_rows: as in backend.h. */
/* x = embeddings of tokens; xn = normed for the first layer. */
void fkv_forward_embed(fkv_engine_device *d, const int32_t *tokens, int64_t n, void *x, void *xn);
/* Output projection of att, MLP, both residual adds, and the next norm into xn. */
void fkv_forward_mlp(fkv_engine_device *d, int layer, int64_t n, int64_t class_rows, const void *att, void *x,
                     void *xn);
/* The device's logits[n_slots, vocab] of normed rows. */
void fkv_forward_logits(fkv_engine_device *d, const void *xn);

#endif
