/* What the benchmarks of a model over several ranks share: its shape, head scores for it, lists of numbers.
 */
#ifndef FKV_TESTS_LARGE_MODEL_H
#define FKV_TESTS_LARGE_MODEL_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/model/config.h"
#include "engine/plan/budget.h"
#include "runner/base/status.h"
#include "tests/unit/model_shapes.h"

static inline void die(const char *what, const fkv_err *err)
{
    char text[2048] = "";
    if (err) fkv_err_format(err, text, sizeof text);
    fprintf(stderr, "%s: %s\n", what, text);
    exit(1);
}

/* "8b" or "70b". */
static inline fkv_config large_model(const char *shape)
{
    fkv_config c = strcmp(shape, "8b") != 0 ? shape_70b : shape_8b;
    if (strcmp(shape, "8b") != 0 && strcmp(shape, "70b") != 0) die("shape", NULL);
    c.rms_eps = 1e-5f;
    c.rope.theta = 500000;
    return c;
}

/* Scores of a file of 32 layers and 8 KV heads; layer l of the model takes those of layer l * 32 / n_layers.
 * out: [n_layers][8]. */
static inline void read_scores(const char *path, int n_layers, double *out)
{
    enum { LAYERS = 32, HEADS = 32, KV_HEADS = 8 };
    fkv_err err = {0};
    double file[LAYERS * KV_HEADS];
    if (fkv_scores_read_file(path, LAYERS, HEADS, KV_HEADS, file, &err)) die("scores", &err);
    for (int l = 0; l < n_layers; l++)
        memcpy(out + l * KV_HEADS, file + l * LAYERS / n_layers * KV_HEADS, KV_HEADS * sizeof *out);
}

/* "64,128": how many there were, at most max. */
static inline int parse_list(const char *text, int64_t *out, int max)
{
    int n = 0;
    for (const char *p = text; *p && n < max; p += *p == ',') out[n++] = strtoll(p, (char **)&p, 10);
    return n;
}

#endif
