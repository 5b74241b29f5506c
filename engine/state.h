/* What the engine's files share, and engine/measure, which looks inside to time steps. The engine owns all
 * of it (fkv_engine_close); the decode heads' and layers' weights are the device's.
 *
 * Not for other folders: see engine.h. */
#ifndef FKV_ENGINE_STATE_H
#define FKV_ENGINE_STATE_H

#include "engine/engine.h"
#include "engine/kv.h"
#include "engine/memory.h"
#include "engine/model/tensors.h"
#include "engine/plan/partition.h"
#include "engine/schedule.h"
#include "engine/team.h"

/* One rank's part of one layer. */
typedef struct fkv_rank_layer {
    fkv_weight *qkv; /* home heads, per head Q (group * hd), K, V rows: [n_home * head_rows * hd, hidden] */
    fkv_weight *o;   /* its rows (output columns) of the output projection: [share of hidden, n_heads * hd] */
    fkv_weight *gate_up; /* its share of the intermediate, gate and up (weight_load_gated) */
    fkv_weight *down;    /* the same share as depth: [hidden, share of intermediate] */
    /* The output projection by home query head, for scorers that want it (weights.c); else NULL. */
    fkv_weight *output_heads; /* [n_home * group * hidden, hd] */
    float *gram;              /* [n_home * group][hd][hd] of the same */
    fkv_decode_head *served;  /* [n_served] placements of the plan, by head */
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

/* Norms of one layer. */
typedef struct fkv_norms {
    float *attention, *mlp;         /* [hidden]: before each */
    float *attention_out, *mlp_out; /* [hidden]: of what each gives; or NULL */
    float *q, *k;                   /* [head_dim], or NULL */
} fkv_norms;

/* Rows that a layer works on: prefill's pack, or a decode step. Device memory. */
typedef struct fkv_layer_rows {
    int64_t n, class_rows; /* class_rows: as in backend.h */
    void *att;             /* [n, n_heads * hd] */
    void *x, *xn;          /* [n, hidden] */
    float *xn_scale;       /* [n], where xn is in FP8; else NULL */
} fkv_layer_rows;

/* The tile whose sum over ranks is still under way: see fkv_layer_settle. */
typedef struct fkv_unsettled {
    fkv_layer_rows rows;
    int64_t tile;
    int layer;
    int64_t ticket;
    bool there;
} fkv_unsettled;

/* Edits that a device applies at a time. */
enum { FKV_EDITS = 1 << 16 };

typedef struct fkv_engine_device fkv_engine_device;

/* One device and the ranks on it. Buffers are device memory; T = rows of the largest pack, tile = rows of
 * a prefill tile, or the slots where they are more. */
struct fkv_engine_device {
    fkv_engine *engine;
    fkv_device *dev;
    int index;
    fkv_mark home;  /* home weights; behind it what depends on slots and prompts */
    fkv_mark sized; /* behind it the plan's */
    fkv_rank *ranks;
    int rank0, n_ranks;
    fkv_norms *norms;                  /* [n_layers] */
    float *last_norm;                  /* [hidden] */
    void *x;                           /* prefill residual [T, hidden] */
    void *xn;                          /* [T, hidden] normed */
    void *qkv;                         /* [T, max home heads * head_rows * hd] of the rank at work */
    void *att;                         /* [T, n_heads * hd] */
    void *y;                           /* [tile, hidden], or FKV_TILES_OF_Y of them (memory.h) */
    void *act;                         /* [tile, largest share of intermediate] */
    float *partial;                    /* [n_ranks][rows of the tile at work][hidden], as y */
    float *scores, *second;            /* [max home heads][T]; second: for `critical` alone */
    void *step_x, *step_xn, *step_att; /* decode: [n_slots, hidden], [n_slots, n_heads * hd] */
    /* Scales of rows in FP8; NULL where the layers' matrices are not: of xn [T], of step_xn [n_slots], of att
     * or act of the tile at work [rows]. */
    float *xn_scale, *step_scale, *tile_scale;
    float *logits;               /* [n_slots, vocab] */
    uint8_t *device_of;          /* of the engine, on the device */
    int32_t *tokens, *rope_rows; /* [T] of a pack */
    fkv_segment *segments;       /* [n_slots] of a pack */
    fkv_edit *edits;             /* [FKV_EDITS] */
    fkv_slots slots;
    fkv_token_rules rules; /* of the options, on the device */
    int64_t tickets[2];    /* of commands, by number */
    int32_t *table;        /* page table, [n_slots][kv.slot_stride] */
    int64_t arena_budget;  /* bytes that this device's KV arenas may take */
    fkv_unsettled unsettled;
    bool watched; /* a step that the stopwatch sees is under way */
};

/* Where a step is that is enqueued op by op, with everything before it enqueued. */
typedef enum fkv_moment {
    FKV_STEP_BEGINS,
    FKV_LAYER_BEGINS, /* with the ranks' attention segments, one after the other */
    FKV_SEGMENT_ENDS, /* a rank's */
    FKV_SEGMENTS_END, /* and what no plan changes begins */
    FKV_LAYERS_END,   /* and what is done once a step begins */
    FKV_STEP_ENDS,
    FKV_SHARES_BEGIN, /* ranks do their shares of a product one after the other */
    FKV_SHARES_END
} fkv_moment;

/* Who wants to know; called by every device's thread for its own device. */
typedef struct fkv_stopwatch {
    void *ctx;
    void (*at)(void *ctx, const fkv_engine_device *d, fkv_moment moment, int layer);
} fkv_stopwatch;

struct fkv_engine {
    fkv_config config;
    fkv_attention_spec *specs; /* [n_layers] */
    fkv_engine_options options;
    fkv_device_info info;
    fkv_world *world;
    fkv_engine_device *devices;
    fkv_team *team;
    int64_t *hidden_cols; /* [n_devices + 1] columns of the hidden that each device's ranks project */
    int64_t *vocab_cols;
    int64_t *head_cols;                    /* attention columns of each device's home heads */
    int tile;                              /* rows of a prefill tile */
    int64_t max_rows;                      /* of a pack */
    int32_t *pack_tokens, *pack_rope_rows; /* [max_rows] of the pack to be enqueued */

    /* with the plan */
    fkv_kv kv;
    void **arenas;      /* [n_ranks] */
    uint8_t *device_of; /* [n_layers][n_kv_heads][n_slots] device of the owner */
    bool planned;
    int64_t copy_bytes, arena_bytes;

    const fkv_stopwatch *stopwatch; /* or NULL; steps that it sees are not replayed */
    bool unwatched;                 /* it does not see the next step */
    int choice;                     /* what the slots of the next step need (FKV_CHOICE_) */

    /* stats; of plans that were cleared */
    int64_t decode_steps, kv_peak_bytes;
    double prefill_seconds, decode_seconds;
    fkv_schedule_stats schedule_stats; /* of all runs that have ended */
    const fkv_schedule *schedule;      /* of the run under way; NULL: none is */
    double *rank_seconds;              /* [n_ranks] */
};

/* engine.c */
fkv_memory_shape fkv_engine_memory_shape(const fkv_engine *e);
/* Those that it may score with. */
static inline uint32_t fkv_engine_scorers(const fkv_engine *e)
{
    return fkv_scorer_bit(e->options.scorer) | e->options.more_scorers;
}

/* Of a record: fkv_slots. */
static inline int32_t fkv_engine_rope0(const fkv_engine *e, int64_t n_prompt, int64_t max_new)
{
    return fkv_config_record_rope(&e->config, n_prompt, max_new) * (int32_t)e->options.max_tokens;
}

static inline fkv_qk_norm fkv_layer_qk_norm(const fkv_engine_device *d, int layer)
{
    return (fkv_qk_norm){d->norms[layer].q, d->norms[layer].k, d->engine->config.rms_eps};
}

static inline void fkv_watch(const fkv_engine_device *d, fkv_moment moment, int layer)
{
    const fkv_stopwatch *w = d->engine->stopwatch;
    if (d->watched) w->at(w->ctx, d, moment, layer);
}

static inline fkv_kv_view fkv_engine_kv_view(const fkv_engine_device *d)
{
    const fkv_engine *e = d->engine;
    return (fkv_kv_view){e->arenas,    d->table,      e->kv.slot_stride,
                         e->kv.offset, e->kv.budgets, e->options.kv_form};
}

/* weights.c */
fkv_status fkv_weights_load_home(fkv_engine_device *d, const fkv_safetensors *st, fkv_err *err);
/* Fills served of every layer from the plan and loads the copies' weights. */
fkv_status fkv_weights_load_copies(fkv_engine_device *d, const fkv_safetensors *st, const fkv_plan *plan,
                                   fkv_err *err);

/* A pack to be prefilled; its tokens and rows of RoPE tables are the engine's pack_tokens and
 * pack_rope_rows. */
typedef struct fkv_prefill {
    const fkv_segment *segments;
    int n_segments;
    int64_t n_rows, n_tiles;
    bool no_scores;     /* only the time counts: leave compression out */
    float *host_scores; /* one segment of slot -1: [n_layers][n_kv_heads][T - window - sinks], host */
} fkv_prefill;

/* Puts the prompt of a segment with its place and limit into the engine's pack_tokens and pack_rope_rows. */
void fkv_prefill_put(fkv_engine *e, const int32_t *ids, const fkv_segment *segment);
/* A pack of one prompt in segment's slot, with its limit of new tokens; sets the same. */
fkv_prefill fkv_prefill_one(fkv_engine *e, const int32_t *ids, int64_t n_ids, fkv_segment *segment);

/* prefill.c, decode.c: enqueue on one device; every device calls the same. */
void fkv_prefill_enqueue(fkv_engine_device *d, const fkv_prefill *p);
/* dst[index] = value for all of edits (host memory). */
void fkv_edits_enqueue(fkv_engine_device *d, int32_t *dst, const fkv_edit *edits, int64_t n);
/* Arguments of the decode ops of a device's local-th rank in a layer. */
fkv_decode_args fkv_decode_args_of(const fkv_engine_device *d, int local, int layer);
/* One step of all slots: replayed where it was recorded and nobody watches. */
void fkv_decode_run(fkv_engine_device *d);
/* What a step does once: before its layers and behind them. */
void fkv_decode_begin(fkv_engine_device *d);
void fkv_decode_end(fkv_engine_device *d);

/* layer.c: what prefill and decode share. All work on n rows; class_rows: as in backend.h. */
/* x = embeddings of tokens; xn = normed for the first layer, in FP8 where there is a scale. */
void fkv_layer_embed(fkv_engine_device *d, const int32_t *tokens, int64_t n, void *x, void *xn,
                     float *xn_scale);
/* The layer behind its attention: output projection of att (which FP8 overwrites), MLP, both residual adds,
 * and the next norm into xn; the last norm's is never in FP8. */
void fkv_layer_finish(fkv_engine_device *d, int layer, const fkv_layer_rows *rows);
/* The same where the columns of att are not gathered yet, with the collectives of some tiles beside the
 * products of others. The last tile's x and xn are there after settle alone, which is to be called before
 * they are read and before any other collective. */
void fkv_layer_finish_aside(fkv_engine_device *d, int layer, const fkv_layer_rows *rows);
void fkv_layer_settle(fkv_engine_device *d);
/* The device's logits[n_slots, vocab] of normed rows. */
void fkv_layer_logits(fkv_engine_device *d, void *xn);

#endif
