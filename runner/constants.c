/* Constants of the cost model for a run: see constants.h. */
#include "runner/constants.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runner/base/file.h"
#include "runner/base/json.h"
#include "runner/base/log.h"
#include "runner/base/mem.h"

/* Beyond an hour a time in a file is damage. */
static const double most_us = 3.6e9;
enum { MAX_PLAN_BYTES = 64 << 20, MAX_STATS_BYTES = 16 << 20 };

static fkv_cost stated_cost(const fkv_setup *s)
{
    fkv_cost cost = s->backend->shares_host ? fkv_cost_cpu(&s->config) : fkv_cost_gpu(&s->config);
    /* Plain K and V are of the activations' type. */
    cost.token_us *= (double)fkv_kv_token_bytes(fkv_setup_kv_form(s), s->config.head_dim, cost.act_bytes) /
                     (double)fkv_kv_token_bytes(FKV_KV_PLAIN, s->config.head_dim, cost.act_bytes);
    return cost;
}

void fkv_constants_stated(const fkv_setup *s, const fkv_layout *layout, fkv_constants *out)
{
    const fkv_cost whole = stated_cost(s);
    *out = (fkv_constants){.cost = fkv_cost_at(&whole, layout->ranks),
                           .collectives_us =
                               fkv_split_collectives_us(&whole, &s->config, layout->slots, layout->ranks)};
}

static double mean_tokens(const fkv_setup *s, const fkv_profile *profile, fkv_err *err, fkv_status *st)
{
    const size_t n = (size_t)s->config.n_layers * (size_t)s->config.n_kv_heads;
    double *tokens = fkv_calloc(n, sizeof *tokens), sum = 0;
    if (!tokens) *st = fkv_fail_memory(err);
    if (!tokens) return 0;
    fkv_cost_tokens(profile, tokens);
    for (size_t i = 0; i < n; i++) sum += tokens[i];
    free(tokens);
    return sum / (double)n;
}

static fkv_status task_of(const fkv_setup *s, const fkv_layout *layout, const fkv_profile *profile,
                          fkv_calibration_task *out, fkv_err *err)
{
    fkv_status st = FKV_OK;
    *out = (fkv_calibration_task){
        .backend = s->backend,
        .config = &s->config,
        .n_ranks = layout->ranks,
        .n_devices = layout->devices,
        .n_slots = layout->slots,
        .kv_form = fkv_setup_kv_form(s),
        .n_threads = fkv_setup_threads(s),
        .form = fkv_setup_form(s),
        .mean_tokens = mean_tokens(s, profile, err, &st),
        .prompt_tokens = {fkv_profile_prompt(profile, 0.5), fkv_profile_prompt(profile, 1)},
        .again = !strcmp(s->job->plan.calibration, "measure")};
    return st;
}

/* The machine's calibration for the task; false, and a line in the log, where there is none. */
static bool measured(const fkv_calibration_task *task, fkv_calibration *out)
{
    fkv_err why = {0};
    char text[1024];
    if (!fkv_calibration_cached(task, out, NULL, &why)) return true;
    fkv_err_format(&why, text, sizeof text);
    fkv_log("calibration: not measured, stated rates are used: %s", text);
    *out = (fkv_calibration){0};
    return false;
}

typedef enum source { STATED, MACHINE, NAMED } source;

static source source_of(const fkv_setup *s)
{
    const char *how = s->job->plan.calibration;
    if (!strcmp(how, "stated")) return STATED;
    return !strcmp(how, "auto") || !strcmp(how, "measure") ? MACHINE : NAMED;
}

bool fkv_constants_measured(const fkv_setup *s)
{
    return source_of(s) == MACHINE;
}

fkv_status fkv_constants_choose(const fkv_setup *s, const fkv_layout *layout, const fkv_profile *profile,
                                fkv_constants *out, fkv_err *err)
{
    const source from = source_of(s);
    fkv_calibration_task task;
    fkv_calibration found;
    fkv_constants_stated(s, layout, out);
    if (from == STATED) return FKV_OK;
    if (from == MACHINE && (layout->ranks == 1 || s->job->plan.mode == FKV_JOB_STANDARD)) return FKV_OK;
    fkv_status st = task_of(s, layout, profile, &task, err);
    if (st) return st;
    if (from == NAMED) {
        if (s->auto_ranks) task.n_ranks = 0;
        if (s->auto_slots) task.n_slots = 0;
        st = fkv_calibration_pinned(&task, s->job->plan.calibration, &found, err);
        if (st) return st;
        found.cost.origin = FKV_COST_FILE;
    } else if (!measured(&task, &found)) {
        return FKV_OK;
    }
    const fkv_cost stated = stated_cost(s), cost = fkv_cost_complete(&found.cost, &stated);
    *out = (fkv_constants){.cost = found.cost, .key = found.key, .fit_error = found.fit_error};
    /* Ranks on one device gather by plain writes, which the common part holds. */
    if (layout->devices > 1)
        out->collectives_us = fkv_split_collectives_us(&cost, &s->config, layout->slots, layout->devices);
    return FKV_OK;
}

fkv_status fkv_constants_rates(const fkv_setup *s, const fkv_layout *layout, const fkv_profile *profile,
                               fkv_cost *out, fkv_err *err)
{
    fkv_calibration_task task;
    fkv_calibration found = {0};
    const fkv_cost stated = *out = stated_cost(s);
    const source from = source_of(s);
    if (from == STATED || (from == MACHINE && layout->ranks == 1)) return FKV_OK;
    fkv_status st = task_of(s, layout, profile, &task, err);
    if (st) return st;
    if (from == NAMED) {
        task.n_ranks = task.n_slots = 0;
        st = fkv_calibration_pinned(&task, s->job->plan.calibration, &found, err);
    } else {
        measured(&task, &found);
    }
    if (!st && found.key.n_ranks) *out = fkv_cost_complete(&found.cost, &stated);
    return st;
}

fkv_status fkv_constants_known(const fkv_setup *s, const fkv_layout *layout, const fkv_profile *profile,
                               const fkv_constants *planned, fkv_cost *out, bool *known, fkv_err *err)
{
    const fkv_cost stated = *out = stated_cost(s);
    const source from = source_of(s);
    fkv_calibration_task task;
    fkv_calibration found;
    const bool in_plan = planned && planned->cost.origin != FKV_COST_STATED;
    if (in_plan) *out = fkv_cost_complete(&planned->cost, &stated);
    *known = in_plan || from == STATED;
    if (planned || from == STATED) return FKV_OK;
    if (from == MACHINE && layout->ranks == 1) return FKV_OK;
    fkv_status st = task_of(s, layout, profile, &task, err);
    if (st) return st;
    if (from == NAMED) {
        task.n_ranks = task.n_slots = 0;
        st = fkv_calibration_pinned(&task, s->job->plan.calibration, &found, err);
        found.cost.origin = FKV_COST_FILE;
        *known = !st;
    } else {
        st = fkv_calibration_kept(&task, &found, known, err);
    }
    if (*known) *out = fkv_cost_complete(&found.cost, &stated);
    return st;
}

fkv_status fkv_constants_kept(const fkv_setup *s, const fkv_layout *layout, const fkv_profile *profile,
                              fkv_constants *out, fkv_err *err)
{
    fkv_calibration_task task;
    fkv_calibration found;
    fkv_constants_stated(s, layout, out);
    if (source_of(s) != MACHINE) return FKV_OK;
    const fkv_status st = task_of(s, layout, profile, &task, err);
    if (!st && measured(&task, &found))
        *out = (fkv_constants){.cost = found.cost, .key = found.key, .fit_error = found.fit_error};
    return st;
}

fkv_status fkv_constants_check(const fkv_setup *s, fkv_err *err)
{
    fkv_calibration ignored;
    if (source_of(s) != NAMED) return FKV_OK;
    const fkv_calibration_task task = {.backend = s->backend,
                                       .config = &s->config,
                                       .n_ranks = s->auto_ranks ? 0 : s->n_ranks,
                                       .n_devices = fkv_setup_devices_each(s),
                                       .n_slots = s->auto_slots ? 0 : s->n_slots,
                                       .kv_form = fkv_setup_kv_form(s),
                                       .n_threads = fkv_setup_threads(s),
                                       .form = fkv_setup_form(s),
                                       .mean_tokens = 1};
    return fkv_calibration_pinned(&task, s->job->plan.calibration, &ignored, err);
}

fkv_status fkv_constants_put(const fkv_constants *c, fkv_buf *out, fkv_err *err)
{
    fkv_status st =
        fkv_buf_printf(out, err, "\"cost\":{\"origin\":\"%s\"", fkv_cost_origin_name(c->cost.origin));
    for (int i = 0; !st && i < FKV_COST_FIELDS; i++) {
        double v;
        memcpy(&v, (const char *)&c->cost + fkv_cost_fields[i].offset, sizeof v);
        st = fkv_buf_printf(out, err, ",\"%s\":%.17g", fkv_cost_fields[i].name, v);
    }
    if (!st) st = fkv_buf_printf(out, err, ",\"collectives_us\":%.17g", c->collectives_us);
    if (!st && c->cost.origin != FKV_COST_STATED) {
        st = fkv_buf_puts(out, ",\"device\":", err);
        if (!st) st = fkv_json_put_string(out, c->key.device, strlen(c->key.device), err);
        if (!st)
            st = fkv_buf_printf(out, err, ",\"tokens\":%d,\"fit_error\":%.17g", c->key.tokens, c->fit_error);
    }
    return st ? st : fkv_buf_puts(out, "}", err);
}

static fkv_status read_time(const json_t *cost, const char *name, const char *path, double *out, fkv_err *err)
{
    const json_t *v = json_object_get(cost, name);
    char key[48];
    *out = json_number_value(v);
    if (json_is_number(v) && *out >= 0 && *out <= most_us) return FKV_OK;
    snprintf(key, sizeof key, "cost.%s", name);
    return fkv_fail_at(err, FKV_E_INPUT, path, 0, key, "must be a number in [0, %g]", most_us);
}

fkv_status fkv_constants_read(const char *path, fkv_constants *c, fkv_err *err)
{
    json_t *root = NULL;
    const char *origin;
    fkv_constants found = {0};
    fkv_status st = fkv_json_load(path, MAX_PLAN_BYTES, &root, err);
    const json_t *cost = json_object_get(root, "cost");
    if (st || !cost) goto out;
    if (!json_is_object(cost)) {
        st = fkv_fail_at(err, FKV_E_INPUT, path, 0, "cost", "must be an object");
        goto out;
    }
    if ((st = fkv_json_str(cost, "origin", path, &origin, err))) goto out;
    for (fkv_cost_origin i = 0; i < FKV_COST_ORIGINS; i++)
        if (!strcmp(origin, fkv_cost_origin_name(i))) found.cost.origin = i;
    for (int i = 0; i < FKV_COST_FIELDS; i++) {
        double us;
        if ((st = read_time(cost, fkv_cost_fields[i].name, path, &us, err))) goto out;
        memcpy((char *)&found.cost + fkv_cost_fields[i].offset, &us, sizeof us);
    }
    if ((st = read_time(cost, "collectives_us", path, &found.collectives_us, err))) goto out;
    *c = found;
out:
    json_decref(root);
    return st;
}

fkv_status fkv_constants_print_measured(const char *path, FILE *out, fkv_err *err)
{
    json_t *root = NULL;
    if (!fkv_file_exists(path)) return FKV_OK;
    fkv_err bad = {0};
    const fkv_status st = fkv_json_load(path, MAX_STATS_BYTES, &root, &bad);
    if (st == FKV_E_INPUT) return FKV_OK; /* a damaged file says nothing */
    if (st) return fkv_fail_at(err, st, bad.file, 0, NULL, "%s", bad.message);
    const json_t *step = json_object_get(json_object_get(root, "run"), "step");
    const double predicted = json_number_value(json_object_get(step, "predicted_us"));
    const double measured = json_number_value(json_object_get(step, "measured_us"));
    const double segments = json_number_value(json_object_get(step, "predicted_segments_us"));
    const double taken = json_number_value(json_object_get(step, "measured_segments_us"));
    if (predicted > 0 && measured > 0)
        fprintf(
            out,
            "last run's decode step with all slots at work: predicted %.1f us, measured %.1f us (%+.1f%%)",
            predicted, measured, 100 * (predicted / measured - 1));
    if (predicted > 0 && measured > 0 && segments > 0 && taken > 0)
        fprintf(out, "; its attention segments: predicted %.1f us, measured %.1f us (%+.1f%%)", segments,
                taken, 100 * (segments / taken - 1));
    if (predicted > 0 && measured > 0) fputc('\n', out);
    json_decref(root);
    return FKV_OK;
}
