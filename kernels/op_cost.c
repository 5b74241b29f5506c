/* Bytes and FLOPs of the table's ops: the formulas are in op_cost.h. */
#include "kernels/op_cost.h"

fkv_op_cost fkv_op_cost_embed(const fkv_device_info *d, int64_t n, int64_t k)
{
    return (fkv_op_cost){.bytes = (double)n * (4 + (double)k * (d->weight_bytes + 4))};
}

fkv_op_cost fkv_op_cost_scale(int64_t n, bool with_cap)
{
    return (fkv_op_cost){.bytes = 8.0 * (double)n, .flops = (with_cap ? 10.0 : 1.0) * (double)n};
}

/* Of an activation. */
static int act_bytes(const fkv_device_info *d, fkv_form form)
{
    return form == FKV_FORM_FP8 ? d->fp8_bytes : d->act_bytes;
}

fkv_op_cost fkv_op_cost_add_rmsnorm(const fkv_device_info *d, int64_t n, int64_t hidden, bool with_y,
                                    bool with_out, fkv_form out)
{
    const double all = (double)n * (double)hidden;
    return (fkv_op_cost){.bytes = all * (d->act_bytes * (1 + 2 * with_y) + with_out * act_bytes(d, out)) +
                                  (with_out ? 4 * (double)hidden : 0),
                         .flops = all * (with_y + 4 * with_out)};
}

fkv_op_cost fkv_op_cost_quantise(const fkv_device_info *d, int64_t n, int64_t k)
{
    const double all = (double)n * (double)k;
    return (fkv_op_cost){.bytes = all * (d->act_bytes + d->fp8_bytes), .flops = 2 * all};
}

static fkv_form form_of(fkv_acts x)
{
    return x.scale ? FKV_FORM_FP8 : FKV_FORM_NATIVE;
}

/* Of a weight that meets x. */
static int weight_bytes(const fkv_device_info *d, fkv_acts x)
{
    return x.scale ? d->fp8_bytes : d->weight_bytes;
}

/* n rows x of depth k with w_rows rows of a weight, results of out_bytes a row. */
static fkv_op_cost product(const fkv_device_info *d, fkv_acts x, int64_t n, int64_t w_rows, int64_t k,
                           double out_bytes)
{
    const double rows = (double)n, weights = (double)w_rows * (double)k;
    return (fkv_op_cost){.bytes = rows * (double)k * act_bytes(d, form_of(x)) + weights * weight_bytes(d, x) +
                                  rows * out_bytes,
                         .flops = 2 * rows * weights};
}

fkv_op_cost fkv_op_cost_linear(const fkv_device_info *d, fkv_acts x, int64_t n, int64_t w_rows, int64_t k,
                               fkv_acts y, bool f32_out, fkv_epilogue epilogue)
{
    const int64_t out = epilogue == FKV_EPILOGUE_NONE ? w_rows : w_rows / 2;
    return product(d, x, n, w_rows, k, (double)out * (f32_out ? 4 : act_bytes(d, form_of(y))));
}

fkv_op_cost fkv_op_cost_prefill_qkv(const fkv_device_info *d, const fkv_prefill_args *a, int64_t k)
{
    const int64_t w_rows = (int64_t)a->n_heads * fkv_head_rows(a->spec->group) * a->spec->head_dim;
    return product(d, a->x, a->n_rows, w_rows, k, (double)w_rows * d->act_bytes);
}

/* Keys that position pos sees. */
static double seen(const fkv_attention_spec *spec, int64_t pos)
{
    return (double)(spec->window && pos >= spec->window ? spec->window : pos + 1);
}

/* Sum of seen over positions [from, to). */
static double pairs(const fkv_attention_spec *spec, int64_t from, int64_t to)
{
    const int64_t grows =
        spec->window && to > spec->window ? spec->window : to; /* seen(p) = p + 1 before it */
    const int64_t some = from < grows ? grows : from;
    const double triangle =
        from < grows ? ((double)from + 1 + (double)grows) * (double)(grows - from) / 2 : 0;
    return triangle + (double)(to - some) * spec->window;
}

/* Keys that any of the positions [from, to) sees. */
static double keys_of(const fkv_attention_spec *spec, int64_t from, int64_t to)
{
    return (double)(to - from - 1) + seen(spec, from);
}

fkv_op_cost fkv_op_cost_prefill_attention(const fkv_device_info *d, const fkv_prefill_args *a)
{
    const fkv_attention_spec *spec = a->spec;
    const double hd = spec->head_dim, heads = a->n_heads, group = spec->group;
    fkv_op_cost cost = {0};
    for (int i = 0; i < a->pack->n_segments; i++) {
        const int64_t n = a->pack->segments[i].n_tokens, from = a->last_only ? n - 1 : 0;
        cost.bytes +=
            d->act_bytes * hd * heads * (2 * keys_of(spec, from, n) + 2 * (double)(n - from) * group);
        cost.flops += 4 * hd * heads * group * pairs(spec, from, n);
    }
    return cost;
}

/* Of one head and a prompt of n tokens. */
static fkv_op_cost scores_cost(const fkv_device_info *d, const fkv_prefill_args *a, int64_t n)
{
    const fkv_attention_spec *spec = a->spec;
    const int64_t from = n - a->score_window;
    const double hd = spec->head_dim, group = spec->group, n_scored = (double)(from - a->sinks);
    const double n_open = (double)(n - a->sinks);
    fkv_op_cost c = {.bytes = 4 * n_scored};
    if (a->scorer == FKV_SCORER_KEYDIFF) {
        c.bytes += d->act_bytes * hd * (double)n;
        c.flops = 5 * hd * (double)n;
    } else if (a->scorer == FKV_SCORER_EXPECTED) {
        c.bytes += d->act_bytes * hd * fkv_head_rows(spec->group) * n_open;
        c.flops = 4 * group * hd * hd * n_open;
    } else {
        c.bytes += d->act_bytes * hd * (keys_of(spec, from, n) + a->score_window * group);
        c.flops = 2 * hd * group * pairs(spec, from, n);
    }
    if (fkv_scorer_wants_output(a->scorer)) {
        const bool l1 = a->scorer == FKV_SCORER_CRITICAL;
        c.bytes += d->act_bytes * hd * n_scored + (l1 ? 4 * n_scored : 0);
        c.flops += 2 * group * hd * (l1 ? a->hidden : hd) * n_scored;
    }
    return c;
}

fkv_op_cost fkv_op_cost_key_scores(const fkv_device_info *d, const fkv_prefill_args *a)
{
    const double hd = a->spec->head_dim, heads = a->n_heads, values = heads * a->spec->group * hd;
    fkv_op_cost cost = {0};
    for (int i = 0; i < a->pack->n_segments; i++) {
        if (a->pack->segments[i].n_tokens <= a->min_tokens) continue;
        const fkv_op_cost one = scores_cost(d, a, a->pack->segments[i].n_tokens);
        cost.bytes += heads * one.bytes;
        cost.flops += heads * one.flops;
    }
    if (cost.flops > 0 && a->scorer == FKV_SCORER_DEFENSIVE) cost.bytes += 4 * values * hd;
    if (cost.flops > 0 && a->scorer == FKV_SCORER_CRITICAL)
        cost.bytes += d->weight_bytes * values * a->hidden;
    return cost;
}

/* Of a token in a page. */
static double token_bytes(const fkv_device_info *d, const fkv_attention_spec *spec, const fkv_kv_view *kv)
{
    return (double)fkv_kv_token_bytes(kv->form, spec->head_dim, d->kv_bytes);
}

fkv_op_cost fkv_op_cost_kv_keep(const fkv_device_info *d, const fkv_keep_args *a)
{
    const int64_t lh = (int64_t)a->layer * a->spec->n_kv_heads + a->head0;
    const double token = token_bytes(d, a->spec, &a->kv);
    fkv_op_cost cost = {0};
    for (int i = 0; i < a->pack->n_segments; i++) {
        const int64_t n = a->pack->segments[i].n_tokens;
        for (int h = 0; h < a->n_heads; h++) {
            const int64_t budget = a->kv.budgets[lh + h], kept = n < budget ? n : budget;
            const int64_t forced = a->score_window + a->sinks;
            const bool chosen = n > budget && budget > forced && !a->spec->window;
            cost.bytes += (double)kept * (2.0 * a->spec->head_dim * d->act_bytes + token);
            if (chosen) cost.bytes += (a->second ? 8 : 4) * (double)(n - forced);
        }
    }
    return cost;
}

fkv_op_cost fkv_op_cost_last_rows(const fkv_device_info *d, const fkv_pack *pack, int64_t hidden)
{
    return (fkv_op_cost){.bytes = 2.0 * pack->n_segments * (double)hidden * d->act_bytes};
}

fkv_op_cost fkv_op_cost_decode_qkv(const fkv_device_info *d, const fkv_decode_args *a,
                                   const fkv_host_slots *slots)
{
    const double hd = a->spec->head_dim, group = a->spec->group, hidden = a->hidden;
    const double weights = fkv_head_rows(a->spec->group) * hd * hidden,
                 token = token_bytes(d, a->spec, &a->kv);
    fkv_op_cost cost = {.bytes = a->n_slots * hidden * act_bytes(d, form_of(a->x))};
    for (int i = 0; i < a->n_heads_served; i++) {
        const fkv_decode_head *h = &a->heads[i];
        cost.bytes += weights * weight_bytes(d, a->x);
        cost.flops += 2 * weights * (h->end - h->begin);
        for (int s = h->begin; s < h->end; s++)
            if (slots->active[s]) cost.bytes += hd * group * d->act_bytes + token;
    }
    return cost;
}

fkv_op_cost fkv_op_cost_decode_attention(const fkv_device_info *d, const fkv_decode_args *a,
                                         const fkv_host_slots *slots)
{
    const double hd = a->spec->head_dim, group = a->spec->group, token = token_bytes(d, a->spec, &a->kv);
    fkv_op_cost cost = {0};
    for (int i = 0; i < a->n_heads_served; i++) {
        const fkv_decode_head *h = &a->heads[i];
        const int64_t budget = a->kv.budgets[(int64_t)a->layer * a->spec->n_kv_heads + h->head];
        for (int s = h->begin; s < h->end; s++) {
            if (!slots->active[s]) continue;
            const int64_t prompt = slots->prompt_len[s];
            const double n = seen(a->spec, (prompt < budget ? prompt : budget) + slots->pos[s] - prompt);
            cost.bytes += n * token + 2 * hd * group * d->act_bytes;
            cost.flops += 4 * hd * group * n;
        }
    }
    return cost;
}

fkv_op_cost fkv_op_cost_sample(int64_t n_slots, int64_t vocab)
{
    const double logits = (double)n_slots * (double)vocab;
    return (fkv_op_cost){.bytes = 4 * logits, .flops = logits};
}

fkv_op_cost fkv_op_cost_gather_cols(int64_t n, const int64_t *cols, int n_devices, int device, int elem_bytes)
{
    const int64_t others = cols[n_devices] - cols[0] - (cols[device + 1] - cols[device]);
    return (fkv_op_cost){.bytes = (double)n * (double)others * elem_bytes};
}

fkv_op_cost fkv_op_cost_gather_heads(const fkv_device_info *d, int n, int n_kv_heads, int64_t row_elems,
                                     const uint8_t *owner, int device)
{
    int64_t others = 0;
    for (int64_t i = 0; i < (int64_t)n * n_kv_heads; i++) others += owner[i] != device;
    return (fkv_op_cost){.bytes = (double)others * (double)row_elems * d->act_bytes};
}

fkv_op_cost fkv_op_cost_reduce_ranks(const fkv_device_info *d, int n_ranks, int64_t n, int64_t hidden)
{
    const double all = (double)n * (double)hidden;
    return (fkv_op_cost){.bytes = all * (4.0 * n_ranks + d->act_bytes), .flops = all * (n_ranks - 1)};
}
