/* The table of operations between the engine and a device.
 *
 * The engine's logic is written once above this table; cpu and cuda implement
 * it. What every implementation keeps:
 * - An op enqueues work on the device's stream and returns; it allocates nothing
 *   and never reads device data on the host. Errors of enqueued work show at the
 *   next sync or wait. The cpu backend does the work before it returns.
 * - Pointers named dev_* or inside the structs below are device memory unless
 *   said otherwise; only upload and download cross.
 * - Activations are elements of info.act_bytes (cpu: float32, cuda: bf16);
 *   logits, partial sums and scores are float32. Row-major, outermost first.
 * - The bits of a row of any result depend on that row's inputs, the weights and
 *   the op's fixed constants: not on the row's place, on other rows, on how many
 *   rows or heads there are, or on the number of threads.
 *
 * A device is driven by one host thread and holds one rank or several, which
 * run in lockstep: segment by segment, rank by rank. Ranks on one device share
 * its buffers, so what is gathered among them is simply written into one place.
 * Devices meet in the collectives, which every device calls in the same order.
 *
 * Words: slot s, layer l, KV head h, rank r. A "head" is a KV head with its
 * group of query heads. head_dim is hd, and head_rows = fkv_head_rows(group) vectors of
 * hd are what a head has in a row of qkv: its queries, K, V. A page holds K and V of one head for
 * FKV_PAGE_TOKENS tokens in the form that the view says (kv_page.h); plain: elements of info.kv_bytes. What
 * is put into a page is rounded to the backend's own type before it takes another form.
 *
 * How a layer attends stands in its fkv_attention_spec, with the formulas; every op on Q, K and V
 * takes it. What a backend can't do of it, supports refuses.
 *
 * Who owns what: a device owns all that alloc and the loads gave, until release or close; the caller
 * borrows it. The world is closed behind its devices. A failed world_open or open leaves NULL and nothing
 * to be closed; what another failed call had begun is the device's, and what it gave out means nothing.
 *
 * Not for: which rank has which heads, and what runs when (engine/); how long an op takes (metered.h).
 */
#ifndef FKV_KERNELS_BACKEND_H
#define FKV_KERNELS_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/scorer.h"
#include "runner/base/kv_page.h"
#include "runner/base/layer_spec.h"
#include "runner/base/status.h"

enum { FKV_MAX_LOCAL_RANKS = 64, FKV_TICKETS = 4, FKV_ASIDES = 8 };
enum { FKV_BUS_PLACE = 32 }; /* "domain:bus:device.function" of PCI, with its NUL */

/* Tokens of a tile of prefill attention and of scores; a prompt's first tile starts at its
 * own position 0, wherever it lies in a pack. */
enum { FKV_TILE_TOKENS = 128 };

typedef struct fkv_world fkv_world;   /* what devices of one engine share */
typedef struct fkv_device fkv_device; /* one device: memory, stream, threads */
typedef struct fkv_weight fkv_weight; /* a matrix in the device's own layout */

typedef enum fkv_dtype { FKV_DTYPE_BF16, FKV_DTYPE_F16, FKV_DTYPE_F32, FKV_DTYPE_F8_E4M3 } fkv_dtype;

/* How a device holds a matrix. NATIVE: numbers of info.weight_bytes. FP8: e4m3 (arXiv 2209.05433) with a
 * float32 scale for each row, by which products are multiplied: the row's largest magnitude / 448, its
 * numbers divided by that and rounded to nearest, ties to even. A row of activations that meets an FP8 matrix
 * is in the same form: fkv_acts. A row whose largest is below 2^-100 is zeros; one that holds a NaN or an
 * infinity gives no number. */
typedef enum fkv_form { FKV_FORM_NATIVE, FKV_FORM_FP8 } fkv_form;

typedef struct fkv_device_info {
    char name[96];
    int act_bytes; /* of an activation element */
    int kv_bytes;  /* of a K or V element in a plain page */
    int weight_bytes;
    int fp8_bytes, fp8_row_bytes; /* of an element of a weight in FP8, and of a row's scale beside them */
    int prefill_tile;             /* rows of a prefill tile; fixed, so that results are */
    int worth_rows;       /* from so many rows on a prefill pass is about as fast a row as a long one */
    int worth_slots;      /* decoded together; more only make its steps long */
    int64_t memory_bytes; /* free for this engine when info was called */
    int64_t total_bytes;  /* its memory, free or not */
    double nominal_share; /* of total_bytes that a plan may count on, whoever else is there */
    double arena_share;   /* of memory_bytes that KV arenas may take once weights and buffers are there */
    bool replays;         /* recorded steps are replayed as a whole, with their spans (recorded_spans) */
    bool async;           /* enqueued work goes on by itself; else it is done when an op returns */
    bool peers;           /* devices can write each other's arenas (kv_keep) */
} fkv_device_info;

typedef struct fkv_mark {
    int64_t n_blocks, n_weights; /* that there were */
} fkv_mark;

/* RoPE tables of a model. They lie one behind the other, max_positions rows each, so that a position is a row
 * of a layer's table (fkv_attention_spec), and a record may use the rows of one behind it: its rope0 is
 * max_positions then, else 0. Row p of a table: cosine and sine of p * inv_freq[i], times scale[i], which
 * turn elements i and i + hd / 2 of a query or key. */
enum { FKV_MAX_ROPES = 4 };

/* What fixes a device's workspace, and what its ops will be asked for. Pointers are host memory that
 * no call keeps. */
typedef struct fkv_device_limits {
    int n_slots;
    int max_prompt; /* rows of the largest pack */
    int max_positions;
    int hidden, n_heads, n_kv_heads, head_dim, vocab;
    int max_local_heads;              /* KV heads whose prefill one rank does */
    int window;                       /* queries that score a prompt's keys (score_window below) */
    uint32_t scorers;                 /* those that key_scores may be asked for (fkv_scorer_bit) */
    int max_rows, max_share;          /* of products with a gate: rows, and columns of a rank */
    int n_ropes;                      /* RoPE tables, at most FKV_MAX_ROPES */
    const float *inv_freq;            /* [n_ropes][head_dim / 2]; for prepare alone */
    const float *rope_scale;          /* the same; NULL: 1 */
    const fkv_attention_spec *layers; /* [n_layers], of one shape each: that of these limits */
    int n_layers;
    fkv_activation activation; /* of the MLP's gate */
    fkv_form form;             /* of the layers' matrices */
} fkv_device_limits;

/* What the numbers of a matrix are to be multiplied by, in float32, one for each block of [block_rows,
 * block_cols] of it: that of its row i and column j is element i / block_rows * stride + j / block_cols of
 * data, host memory that need not be aligned. */
typedef struct fkv_scales {
    const void *data; /* NULL: none */
    fkv_dtype dtype;
    int64_t block_rows, block_cols, stride;
    int64_t row0, col0; /* in the matrix, of the rows' first number: it may lie inside a block */
} fkv_scales;

/* Rows [n_rows, k] of host memory, row i at data + i * stride elements; none of it
 * need be aligned. Both backends multiply the scales in as they load: the float32 product, which cuda rounds
 * to bf16. In FP8 a row's scale is that of the whole row of the tensor, of which the k numbers may be a part,
 * so that ranks agree on a weight; e4m3 numbers that have one scale a row are kept as they are, with it, and
 * all others are quantised from what NATIVE would hold. */
typedef struct fkv_rows {
    const void *data;
    fkv_dtype dtype;
    int64_t n_rows;
    int64_t stride;
    const void *bias; /* [n_rows] added to the rows' products; NULL: none */
    fkv_dtype bias_dtype;
    fkv_scales scales;
    fkv_form form;                 /* to be held in; the same for all parts of a weight */
    int64_t cols_before, all_cols; /* FP8: the whole row's numbers before data, and all of them; 0: k */
} fkv_rows;

/* Rows of activations, row i at data + i * stride elements of info.act_bytes. With a scale, [rows] in device
 * memory, they are in FP8: row i, in the backend's own layout (cuda: e4m3; cpu: the float32 products of those
 * and the scale), lies at the beginning of the same place. The scale of the first row is aligned to 16 bytes.
 * Its rows are a product's input where its weight is in FP8, and there alone. */
typedef struct fkv_acts {
    void *data;
    int64_t stride;
    float *scale; /* NULL: none */
} fkv_acts;

/* What linear does to its sums (and their bias) in float32, before it rounds them. The gates want a
 * weight of weight_load_gated: out = g(gate) * up, g as in fkv_activation. */
typedef enum fkv_epilogue {
    FKV_EPILOGUE_NONE,
    FKV_EPILOGUE_SILU_GATE,
    FKV_EPILOGUE_GELU_TANH_GATE,
} fkv_epilogue;

static inline fkv_epilogue fkv_gate_epilogue(fkv_activation activation)
{
    return activation == FKV_ACTIVATION_SILU ? FKV_EPILOGUE_SILU_GATE : FKV_EPILOGUE_GELU_TANH_GATE;
}

/* FRESH: being prefilled; its first sample makes it DECODING, or IDLE where it ends there. */
typedef enum fkv_slot_state { FKV_SLOT_IDLE = 0, FKV_SLOT_DECODING = 1, FKV_SLOT_FRESH = 2 } fkv_slot_state;

/* What slots.out holds beside ids. */
enum { FKV_TOKEN_NONE = -1, FKV_TOKEN_BAD_LOGITS = -2 };

/* How a record's tokens are chosen; zeroes: the likeliest, until an id ends the answer. */
typedef struct fkv_sampling {
    float temperature; /* 0: greedy, ties to the lower id */
    float top_p;       /* with a temperature: above 0; 1: all */
    /* Logits of the ids of prompt and answer, each once: above 0 divided by it, others times it
     * (CTRL, arXiv 1909.05858). 0 or 1: none. */
    float repetition_penalty;
    int32_t top_k;         /* 0: all */
    int32_t min_new;       /* ids that end the answer can't be chosen before so many others */
    int32_t ignores_ends;  /* the run's ids that end an answer don't end this one */
    int32_t has_end, end;  /* an id of its own that ends it, too */
    uint64_t seed, stream; /* key of its random numbers; the third part is the token's number */
} fkv_sampling;

/* State of the slots, one element per slot, device memory. */
typedef struct fkv_slots {
    int32_t *token;      /* to be processed next */
    int32_t *pos;        /* its position */
    int32_t *rope0;      /* its record's: what positions are counted from in RoPE tables */
    int32_t *prompt_len; /* T: tokens of the prompt */
    int32_t *n_new;      /* tokens generated */
    int32_t *max_new;
    int32_t *active; /* fkv_slot_state */
    int32_t *out;    /* token of the last sample, or one of those above */
    fkv_sampling *sampling;
    uint32_t *seen; /* [n_slots][FKV_SEEN_WORDS(vocab)] a bit an id of prompt and answer; where there is a
                       repetition penalty */
} fkv_slots;

#define FKV_SEEN_WORDS(vocab) (((int64_t)(vocab) + 31) / 32)

/* Ids that mean the same in all records of a run. */
enum { FKV_MAX_ENDS = 32 };
typedef struct fkv_token_rules {
    int32_t ends[FKV_MAX_ENDS]; /* they end an answer */
    int n_ends;
    const int32_t
        *suppressed; /* [n_suppressed] never chosen; where the rules are a backend's, device memory */
    int n_suppressed;
} fkv_token_rules;

/* What choosing needs beside the largest logit; slots at work together have the sum of their needs. */
enum { FKV_CHOICE_DRAWS = 1, FKV_CHOICE_ADJUSTS = 2, FKV_N_CHOICES = 4 };

/* A macro, so that code on devices has it, too. */
#define FKV_SAMPLING_PENALISES(s)                                                                            \
    ((s).repetition_penalty > 0 && ((s).repetition_penalty < 1 || (s).repetition_penalty > 1))

static inline int fkv_sampling_choice(const fkv_sampling *s, const fkv_token_rules *rules)
{
    return (s->temperature > 0 ? FKV_CHOICE_DRAWS : 0) |
           (FKV_SAMPLING_PENALISES(*s) || s->min_new > 0 || rules->n_suppressed > 0 ? FKV_CHOICE_ADJUSTS : 0);
}

/* Whether id ends an answer. */
static inline bool fkv_sampling_ends(const fkv_sampling *s, const fkv_token_rules *rules, int32_t id)
{
    for (int i = 0; !s->ignores_ends && i < rules->n_ends; i++)
        if (id == rules->ends[i]) return true;
    return s->has_end && id == s->end;
}

/* A prompt in a pack; host and device read the same struct. */
typedef struct fkv_segment {
    int32_t row0, n_tokens; /* its rows are [row0, row0 + n_tokens) of the pack */
    int32_t tile0;          /* tiles of FKV_TILE_TOKENS of the segments before it */
    int32_t slot;           /* that it fills; -1: only its scores are wanted, alone in its pack */
    int32_t max_new;
    fkv_sampling sampling; /* of its record */
} fkv_segment;

/* Prompts that are prefilled together, one behind the other. The bits of a prompt's results
 * don't depend on the pack. */
typedef struct fkv_pack {
    int n_segments;                  /* at most n_slots */
    int64_t n_rows;                  /* of all segments */
    int64_t n_tiles;                 /* of all segments, each rounded up */
    const fkv_segment *segments;     /* host */
    const fkv_segment *dev_segments; /* the same, device memory */
    const int32_t *dev_rope_rows;    /* [n_rows] rope0 and the position in its prompt of each row */
    const int32_t *dev_tokens;       /* [n_rows] */
} fkv_pack;

/* An element to be set. */
typedef struct fkv_edit {
    int32_t index, value;
} fkv_edit;

/* Where K and V live: one arena a rank, one page table for all ranks, since
 * every (layer, head, slot) has exactly one owner. The pages of (l, h, slot) are
 * at table[slot * slot_stride + offset[l * n_kv_heads + h]]. */
typedef struct fkv_kv_view {
    void *const
        *arenas; /* host array [n_ranks] of device pointers; another device's where peers can reach it */
    const int32_t *table;   /* pages, device memory */
    int64_t slot_stride;    /* entries */
    const int64_t *offset;  /* host, [n_layers * n_kv_heads] */
    const int32_t *budgets; /* host, [n_layers * n_kv_heads] */
    fkv_kv_form form;       /* of the pages: the same in every call until release */
} fkv_kv_view;

/* One placement as a rank decodes it. */
typedef struct fkv_decode_head {
    int head, begin, end;     /* slots [begin, end) */
    const fkv_weight *weight; /* rows of Q (group * hd), K (hd), V (hd) of this head start at row */
    int64_t row;
} fkv_decode_head;

/* RMSNorm of queries and keys, where the layer's spec has qk_norm. */
typedef struct fkv_qk_norm {
    const float *q, *k; /* [hd] weights, device memory */
    float eps;
} fkv_qk_norm;

/* Arguments of the prefill ops of one rank in one layer, on the n_heads KV heads whose home it is.
 * One struct serves all three, in this order; each reads pack, spec and n_heads, and its own part. */
typedef struct fkv_prefill_args {
    const fkv_pack *pack;
    const fkv_attention_spec *spec;
    int n_heads;
    void *qkv; /* [pack rows, n_heads * head_rows * hd]: prefill_qkv writes it, the others read it */

    /* prefill_qkv */
    int64_t row0, n_rows;     /* the pack's rows [row0, row0 + n_rows) are done */
    int64_t class_rows;       /* as in linear */
    fkv_acts x;               /* [pack rows, depth of weight], normed */
    const fkv_weight *weight; /* per head rows of Q (group * hd), K (hd), V (hd) */
    fkv_qk_norm norm;

    /* prefill_attention */
    bool last_only;     /* each segment's last row alone */
    void *out;          /* columns [n_heads * group * hd] of rows of out_stride */
    int64_t out_stride; /* elements */

    /* key_scores; scorer.h has the formulas */
    fkv_scorer scorer;    /* one of the limits' */
    int64_t min_tokens;   /* prompts of at most so many get no scores; at least score_window + sinks */
    int score_window;     /* W: last tokens, which have no scores; their queries score keys */
    int sinks;            /* S: first tokens, which have none either */
    int score_kernel;     /* of the max-pool */
    float *scores;        /* of key t of [S, T - W) at [head * score_stride + segment's row0 + t] */
    float *second;        /* the same; for `critical` alone */
    int64_t score_stride; /* elements */
    const fkv_weight *output_heads; /* `critical`: O_g, [n_heads * group * hidden, hd] */
    const float *gram;              /* `defensive`: G_g, [n_heads][group][hd][hd], device memory */
    int hidden;                     /* rows of O_g */
} fkv_prefill_args;

/* Arguments of the two decode attention ops of one rank in one layer. */
typedef struct fkv_decode_args {
    const fkv_attention_spec *spec;
    int layer, rank, n_slots, hidden;
    int local_rank;               /* of the device's ranks */
    const fkv_decode_head *heads; /* host, [n_heads_served] */
    int n_heads_served;
    fkv_slots slots;
    fkv_kv_view kv;
    fkv_acts x; /* [n_slots, hidden], normed */
    fkv_qk_norm norm;
    void *q;   /* [n_heads_served, n_slots, head_rows * hd] scratch of this rank */
    void *out; /* [n_slots, n_kv_heads * group * hd] */
} fkv_decode_args;

/* Arguments of compression of one rank's home heads after a layer's attention. */
typedef struct fkv_keep_args {
    const fkv_pack *pack;
    const fkv_attention_spec *spec;
    int layer;
    int head0, n_heads;  /* the rank's, of all KV heads */
    int score_window;    /* last tokens of a prompt, which have no scores */
    int sinks;           /* first tokens of a prompt, which have none */
    const void *qkv;     /* [n_rows, n_heads * head_rows * hd] */
    const float *scores; /* [n_heads, score_stride], by row; looked at where T > budget */
    float *second;       /* the same: of those that scores does not choose first; overwritten. NULL: scores
                            chooses all */
    int64_t score_stride;
    const int16_t *owner; /* host, [n_layers * n_kv_heads][n_slots]: rank that decodes it */
    int n_slots;
    fkv_kv_view kv;
} fkv_keep_args;

/* How bytes move between the devices of a group. */
typedef enum fkv_way {
    FKV_WAY_ANY,   /* by stores into each other's memory where they reach it, else by a library */
    FKV_WAY_PEERS, /* the first alone */
    FKV_WAY_NCCL   /* the second alone */
} fkv_way;

/* The devices that one engine has: the backend's first_device and those behind it. Several groups
 * may be at work in one process, each with devices of its own. */
typedef struct fkv_group {
    int n_devices, first_device;
    fkv_way way;
} fkv_group;

typedef struct fkv_backend {
    const char *name;
    bool shares_host; /* its devices are the host's processors and memory, which they share */

    /* --- devices and memory ------------------------------------------------ */
    /* Devices that are here and of use side by side. */
    int (*n_devices)(void);
    /* Where the device's GPU is on the bus; devices that share one are at the same place. False: not known.
     * NULL: none of the backend's is a GPU. */
    bool (*bus_place)(int device, char out[FKV_BUS_PLACE]);
    /* Whether a group of them can run a model of these limits, all of its layers, together: FKV_OK, or
     * FKV_E_INPUT with a sentence about what can't be done. Needs no device; what it allows prepare does not
     * refuse. */
    fkv_status (*supports)(const fkv_device_limits *limits, const fkv_group *group, fkv_err *err);
    /* Whether the group's devices can write each other's arenas: info.peers, before one is open. */
    bool (*reach)(const fkv_group *group);
    /* What the group's devices share; close: all of them are closed. */
    fkv_status (*world_open)(const fkv_group *group, fkv_world **world, fkv_err *err);
    void (*world_close)(fkv_world *world);
    /* Ends every wait in a collective, now and later; safe from any thread. */
    void (*world_abort)(fkv_world *world);
    /* index: in the group. n_threads: host threads to use, 0 for its share of all. close takes NULL. */
    fkv_status (*open)(fkv_world *world, int index, int n_threads, fkv_device **dev, fkv_err *err);
    void (*close)(fkv_device *dev);
    void (*info)(const fkv_device *dev, fkv_device_info *info);
    /* What the bits of results depend on beside the inputs, in one line: device, libraries,
     * and the algorithms of what was prepared. Where the line is another, so may the bits be. */
    void (*numerics)(const fkv_device *dev, char *out, size_t size);
    /* Makes the workspace for these limits: before the first op, and again once release has
     * given the last one back. Weights may be loaded before. */
    fkv_status (*prepare)(fkv_device *dev, const fkv_device_limits *limits, fkv_err *err);
    /* Bytes that a device with these limits takes beside what is allocated and loaded through
     * this table. n_threads: host threads of the device. Needs no device. */
    int64_t (*workspace_bytes)(const fkv_device_limits *limits, int n_threads);
    /* Zeroed memory, aligned to 256 bytes, until release or close. */
    fkv_status (*alloc)(fkv_device *dev, size_t bytes, void **out, fkv_err *err);
    /* What is allocated and loaded from mark on can be given back together: release frees
     * those buffers and weights and forgets recorded steps and the spans' times. The device
     * is idle then. */
    fkv_mark (*mark)(const fkv_device *dev);
    void (*release)(fkv_device *dev, fkv_mark mark);
    void (*upload)(fkv_device *dev, void *dst, const void *host, size_t bytes);
    void (*download)(fkv_device *dev, void *host, const void *src,
                     size_t bytes); /* valid after sync, or the wait behind it */
    fkv_status (*sync)(fkv_device *dev, fkv_err *err);
    /* A mark behind what is enqueued so far, and the wait for it: downloads from before it are
     * valid then, while what came later goes on. Tickets count from 1; waiting for one waits
     * for those before it. At most FKV_TICKETS are out at a time. */
    int64_t (*post)(fkv_device *dev);
    fkv_status (*wait)(fkv_device *dev, int64_t ticket, fkv_err *err);
    /* The device's time from the ticket before it to this one, which was waited for. */
    double (*ticket_seconds)(fkv_device *dev, int64_t ticket);
    /* dst[index] = value for all of edits[n] (device memory; no index twice). */
    void (*scatter)(fkv_device *dev, int32_t *dst, const fkv_edit *edits, int64_t n);

    /* --- weights ------------------------------------------------------------ */
    /* [sum of n_rows, k] from parts in order. Freed by release or close. What the backend can't do is refused
     * by name (FKV_E_INPUT). */
    fkv_status (*weight_load)(fkv_device *dev, const fkv_rows *parts, int n_parts, int64_t k,
                              fkv_weight **out, fkv_err *err);
    /* gate and up, both [n_rows, k], for the epilogues with a gate. */
    fkv_status (*weight_load_gated)(fkv_device *dev, fkv_rows gate, fkv_rows up, int64_t k, fkv_weight **out,
                                    fkv_err *err);
    /* Rows [first, first + part.n_rows) of the vocabulary as embeddings. */
    fkv_status (*embedding_load)(fkv_device *dev, fkv_rows part, int64_t first, int64_t k, fkv_weight **out,
                                 fkv_err *err);
    /* Rows stored (gate and up both) and depth. */
    void (*weight_shape)(const fkv_weight *w, int64_t *n_rows, int64_t *k);
    /* out[n][k][k] float32 (device memory) = of each of n times `rows` rows of w, k deep, the products of
     * its columns with each other, summed over the rows in float32. w: of weight_load. At load only. */
    void (*weight_gram)(fkv_device *dev, const fkv_weight *w, int64_t rows, int n, float *out);
    /* Chooses what linear needs for this shape; called once per shape at start. */
    fkv_status (*prepare_linear)(fkv_device *dev, const fkv_weight *w, int64_t n_rows, fkv_epilogue epilogue,
                                 fkv_err *err);

    /* Called once for every layer and rank when the plan is known, with the arguments of
     * its decode ops: makes what they need on the device. */
    fkv_status (*prepare_decode)(fkv_device *dev, const fkv_decode_args *args, fkv_err *err);

    /* --- recording ---------------------------------------------------------- */
    /* A step recorded under key is replayed as a whole; false: it has none yet, so
     * enqueue the ops between record_begin and record_end. That happens for the first
     * steps: the first one runs as it is enqueued, so that what an op chooses or grows
     * at first use is there; later ones are recorded, then run. The ops and their
     * arguments must be the same in every step of a key; uploads, downloads and sync
     * don't belong between begin and end. */
    bool (*replay)(fkv_device *dev, int key);
    void (*record_begin)(fkv_device *dev, int key);
    void (*record_end)(fkv_device *dev, int key);

    /* --- ops on rows -------------------------------------------------------- */
    /* out[n, hidden] float32 = embedding of tokens[n] where table has it, else 0. */
    void (*embed)(fkv_device *dev, const int32_t *tokens, int64_t n, const fkv_weight *table, float *out);
    /* x[n] float32 = factor * x, then cap * tanh(x / cap) where cap is not 0. */
    void (*scale)(fkv_device *dev, float *x, int64_t n, float factor, float cap);
    /* x += y (y NULL: not), then out = rmsnorm(x) * weight (out NULL: not; x: in place). All [n, hidden].
     * scale: out is in FP8, made of the float32 results; it is not x then. */
    void (*add_rmsnorm)(fkv_device *dev, void *x, const void *y, const float *weight, float eps, int64_t n,
                        int64_t hidden, void *out, float *scale);
    /* n rows of k activations into FP8, in place. */
    void (*quantise)(fkv_device *dev, fkv_acts x, int64_t n, int64_t k);
    /* y[n, rows of w] = x[n, k] w^T + bias. f32_out: y is float32, and its stride in such. A row's
     * bits are those of a product of class_rows rows (n <= class_rows), whatever n is. y in FP8: of a gate
     * alone, of its float32 results. */
    void (*linear)(fkv_device *dev, fkv_acts x, int64_t n, int64_t class_rows, const fkv_weight *w,
                   fkv_acts y, bool f32_out, fkv_epilogue epilogue);

    /* --- prefill of a pack --------------------------------------------------- */
    /* The segments' slots are FRESH: pos and prompt_len are T, rope0 is its first row's, nothing is generated
     * yet; with a repetition penalty the prompt's ids are seen. */
    void (*start_slots)(fkv_device *dev, const fkv_pack *pack, const fkv_slots *slots);
    /* Rows of qkv = rows of x times weight^T (and its bias), per head Q (group * hd), K, V; then the
     * spec's norm and RoPE on Q and K, by the pack's dev_rope_rows. */
    void (*prefill_qkv)(fkv_device *dev, const fkv_prefill_args *args);
    /* Causal attention of every prompt's queries over its own keys, into out: a row for each row
     * of the pack, or with last_only for each segment's last row alone, which goes to row `slot`
     * (0 for slot -1). Always float32 softmax. */
    void (*prefill_attention)(fkv_device *dev, const fkv_prefill_args *args);
    /* Scores of the keys of every prompt with more than min_tokens tokens, as scorer.h has them. Directly
     * behind prefill_attention of the same qkv, whose intermediate results it may use. */
    void (*key_scores)(fkv_device *dev, const fkv_prefill_args *args);
    /* Into the owner's pages, in position order: everything where T <= budget; else the first sinks tokens,
     * the (budget - score_window - sinks) chosen ones (scorer.h), and the last score_window. A budget of at
     * most score_window + sinks keeps that many of the last score_window, then of the first sinks. A layer
     * with a window of its own keeps its last min(T, budget) tokens instead. */
    void (*kv_keep)(fkv_device *dev, const fkv_keep_args *args);
    /* out[slot] = row of x of the last token, for every segment; rows of hidden elements. */
    void (*last_rows)(fkv_device *dev, const fkv_pack *pack, const void *x, int64_t hidden, void *out);

    /* --- decode step -------------------------------------------------------- */
    /* Before the layers of a step and behind what changed the slots or the page tables: what the ops of all
     * layers and ranks (prepare_decode) find out of the slots alike. */
    void (*decode_begin)(fkv_device *dev, const fkv_slots *slots);
    /* Q, K, V of every placement; the spec's norm and RoPE; appends K and V at index
     * min(budget, T) + pos - T of the slot's pages. Slots not active are skipped. */
    void (*decode_qkv)(fkv_device *dev, const fkv_decode_args *args);
    /* Attention of q over the slot's pages, chunk by chunk, merged in order; with a window over
     * the last `window` tokens in them. fp8: K's and V's scales are multiplied in in float32, behind the
     * products with K and before those with V. */
    void (*decode_attention)(fkv_device *dev, const fkv_decode_args *args);
    /* Token of logits row s for slot s, into slots.out and slots.token; n_new and pos move on; a
     * token that ends the answer or n_new == max_new makes the slot IDLE. Only DECODING slots, or
     * with first only FRESH ones, whose pos stays; others get FKV_TOKEN_NONE. Logits are adjusted
     * in place first: the penalty, then -inf for the ids that can't be chosen (sampling, rules).
     * choice: what the slots at work need (fkv_sampling_choice), and more may be named. A row that
     * holds a NaN, or whose largest value is not finite: FKV_TOKEN_BAD_LOGITS into slots.out, and
     * the slot is IDLE; nothing else changes. rules: host, with suppressed in device memory. */
    void (*sample)(fkv_device *dev, float *logits, int64_t stride, int n_slots, bool first,
                   const fkv_slots *slots, const fkv_token_rules *rules, int choice, int vocab);

    /* --- timing -------------------------------------------------------------- */
    /* Adds the device's time between the two to seconds[local rank] (n_local <= FKV_MAX_LOCAL_RANKS).
     * In recorded steps a backend may time some of them and scale up. */
    void (*span_begin)(fkv_device *dev, int local_rank);
    void (*span_end)(fkv_device *dev, int local_rank);
    void (*span_seconds)(fkv_device *dev, double *seconds, int n_local); /* after sync */
    /* Spans of a step as it is replayed, one by one in order; returns how many there are
     * (0: it was never recorded with its spans), at most n. After sync. */
    int (*recorded_spans)(fkv_device *dev, int key, double *seconds, int n);

    /* --- collectives --------------------------------------------------------- */
    /* buf[n, stride]: device d has written columns [cols[d], cols[d + 1]); afterwards
     * every device has all. elem_bytes 2 or 4. */
    void (*gather_cols)(fkv_device *dev, void *buf, int64_t n, int64_t stride, const int64_t *cols,
                        int elem_bytes);
    /* out[n, n_kv_heads * row_elems]: (slot, head) was written by device
     * owner[head * n + slot] (host array; dev_owner: the same in device memory);
     * afterwards every device has all. */
    void (*gather_heads)(fkv_device *dev, void *out, int n, int n_kv_heads, int64_t row_elems,
                         const uint8_t *owner, const uint8_t *dev_owner);
    /* Collectives between begin and end start when what was enqueued before is done, and then go on beside
     * what is enqueued behind them, until it waits for the ticket that end gives: tickets count from 1, at
     * most FKV_ASIDES are out at a time, and waiting for one waits for those before it. Nothing else may
     * stand between begin and end, and a collective outside of them comes behind the wait for the last
     * ticket. Not in recorded steps. A backend whose ops are done when they return does nothing here. */
    void (*aside_begin)(fkv_device *dev);
    int64_t (*aside_end)(fkv_device *dev);
    void (*aside_wait)(fkv_device *dev, int64_t ticket);
    /* y[n, hidden] = sum over all ranks in rank order of their partials. partials:
     * this device's ranks one after the other, each [n, hidden] float32. */
    void (*reduce_ranks)(fkv_device *dev, const float *partials, int n_local, int64_t n, int64_t hidden,
                         void *y);
} fkv_backend;

/* checks.c: what holds for every backend. FKV_OK, or FKV_E_INPUT with a sentence: the layers have the
 * shape of the limits and a table for each rope, and all numbers can be. */
fkv_status fkv_limits_check(const fkv_device_limits *limits, fkv_err *err);
/* The same of an embedding, which has no bias. */
fkv_status fkv_embedding_check(const fkv_rows *part, const char *backend, fkv_err *err);

/* rows.c: numbers [col, col + n) of a row, as float32, times their scales. Without scales they may run into
 * the rows behind, where those follow at once. */
void fkv_rows_read(const fkv_rows *rows, int64_t row, int64_t col, int64_t n, float *out);
/* The bias as a row of n_rows numbers. */
fkv_rows fkv_rows_bias(const fkv_rows *rows);
/* The part that holds row *row of all parts', which becomes its row there. */
const fkv_rows *fkv_rows_part(const fkv_rows *parts, int64_t *row);
/* Said of n rows that are read now: the file's bytes 16 MB behind theirs are read soon. */
void fkv_rows_read_ahead(const fkv_rows *rows, int64_t row, int64_t n);
/* The largest magnitude of a row, k of whose numbers are the part's, all of it taken (all_cols); NaN where
 * there is one. */
float fkv_rows_largest(const fkv_rows *rows, int64_t row, int64_t k);
/* Whether FP8 keeps the stored numbers: e4m3 with one scale for all of a row. */
bool fkv_rows_are_fp8(const fkv_rows *rows, int64_t k);
/* Of such a row. */
float fkv_rows_scale(const fkv_rows *rows, int64_t row);
int64_t fkv_dtype_bytes(fkv_dtype dtype);
/* What numbers are multiplied by before they become e4m3, and by after that: of a row's largest magnitude. */
static inline float fkv_fp8_inverse(float largest)
{
    return largest < 0x1p-100f ? 0.0f : 448.0f / largest;
}
static inline float fkv_fp8_scale(float largest)
{
    return largest < 0x1p-100f ? 0.0f : largest / 448.0f;
}

const fkv_backend *fkv_backend_cpu(void);
/* In builds with CUDA, for backend.c alone: the table, whether a GPU is there, and what wake, restrict and
 * the stages below do there. */
const fkv_backend *fkv_backend_cuda(void);
bool fkv_backend_cuda_found(void);
void fkv_backend_cuda_wake(void);
void fkv_backend_cuda_restrict(bool on);
void fkv_stage_cuda_begin(const char *name);
void fkv_stage_cuda_end(void);

/* The backend of that name ("cpu", "cuda"); NULL where this build or this machine has
 * none (fkv_backend_why says which). "auto": cuda where a GPU is found, else cpu; whether
 * it can run the model is to be asked then (supports). */
const fkv_backend *fkv_backend_find(const char *name);
/* Why find gave NULL for name, as the end of a sentence. */
const char *fkv_backend_why(const char *name);
/* Brings up what finding a backend of that name and its first device wait for, such as CUDA's driver: from a
 * thread of its own, beside work that needs none of them. It says nothing: find and open do. */
void fkv_backend_wake(const char *name);
/* Whether there is something to bring up. */
bool fkv_backend_sleeps(const char *name);
/* For tests: GPUs that are opened from now on hide what only some have, shared memory beyond
 * 99 KiB a block, Hopper's own kernels, and libraries. Their code for sm_90a goes unused
 * under CUDA_FORCE_PTX_JIT=1. */
void fkv_backend_restrict(bool on);
/* A stretch of this thread's work, named as the report names it, for NVIDIA's profilers (NVTX). Stretches
 * nest. Without the CUDA toolkit nothing happens. */
void fkv_stage_begin(const char *name);
void fkv_stage_end(void);

/* "cpu" or "cpu cuda": what this build has. */
const char *fkv_backend_names(void);

#endif
