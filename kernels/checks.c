/* What is the same whatever the backend: see backend.h and scorer.h. */
#include <math.h>

#include "kernels/backend.h"

static fkv_status check_layer(const fkv_device_limits *l, int i, fkv_err *err)
{
    const fkv_attention_spec *s = &l->layers[i];
    if (s->head_dim != l->head_dim || s->n_kv_heads != l->n_kv_heads ||
        (int64_t)s->n_kv_heads * s->group != l->n_heads)
        return fkv_fail(err, FKV_E_INPUT,
                        "layer %d has %d KV heads, %d query heads for each and a head_dim of %d: layers "
                        "of unlike shapes are not supported",
                        i, s->n_kv_heads, s->group, s->head_dim);
    if (s->rope < -1 || s->rope >= l->n_ropes)
        return fkv_fail(err, FKV_E_INPUT, "layer %d has RoPE table %d of %d", i, s->rope, l->n_ropes);
    if (!(s->scale > 0) || !(s->softcap >= 0) || s->window < 0)
        return fkv_fail(err, FKV_E_INPUT,
                        "layer %d: an attention scale of %g, a cap of %g or a window of %d can't be", i,
                        (double)s->scale, (double)s->softcap, s->window);
    return FKV_OK;
}

fkv_status fkv_limits_check(const fkv_device_limits *l, fkv_err *err)
{
    fkv_status st = FKV_OK;
    if (l->n_ropes < 0 || l->n_ropes > FKV_MAX_ROPES)
        return fkv_fail(err, FKV_E_INPUT, "%d RoPE tables; at most %d are supported", l->n_ropes,
                        FKV_MAX_ROPES);
    for (int i = 0; !st && i < l->n_layers; i++) st = check_layer(l, i, err);
    return st;
}

void fkv_scorer_ahead(float inv_freq, float out[2])
{
    double re = 0, im = 0;
    for (int f = 1; f <= FKV_SCORER_FUTURE; f++) {
        re += cos(f * (double)inv_freq);
        im += sin(f * (double)inv_freq);
    }
    out[0] = (float)(re / FKV_SCORER_FUTURE);
    out[1] = (float)(im / FKV_SCORER_FUTURE);
}

fkv_status fkv_embedding_check(const fkv_rows *part, const char *backend, fkv_err *err)
{
    if (!part->bias) return FKV_OK;
    return fkv_fail(err, FKV_E_INPUT, "the %s backend can't add a bias to what an embedding gives", backend);
}
