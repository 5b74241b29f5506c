/* Opening of a job: see setup.h. */
#include "runner/setup.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/memory.h"
#include "engine/model/model_files.h"
#include "engine/plan/budget.h"
#include "runner/base/file.h"
#include "runner/base/json.h"
#include "runner/base/log.h"
#include "runner/base/machine.h"
#include "runner/base/mem.h"
#include "runner/commands.h"

int fkv_report_error(const fkv_err *err)
{
    char text[2048];
    fkv_err_format(err, text, sizeof text);
    /* That another run has the output is no news to who starts a job every hour. */
    if (err->status == FKV_E_BUSY)
        fkv_log("error: %s", text);
    else
        fkv_log_at(FKV_LOG_ERROR, "%s", text);
    return fkv_exit_code(err->status);
}

fkv_status fkv_setup_no_record(const fkv_setup *s, const char *member, fkv_err *err)
{
    return fkv_fail_at(err, FKV_E_INPUT, s->job->path, 0, "input.members",
                       "no record in the input: does it match what the archives hold%s%.200s?",
                       *member ? ", such as " : "", member);
}

/* An option of how the run talks: how many words it takes; 0: it is none of them, -1: it is wrong. */
static int parse_style(int argc, char **argv, int i, fkv_log_style *style)
{
    static const char format[] = "--log-format";
    const size_t n = sizeof format - 1;
    if (!strcmp(argv[i], "--quiet") || !strcmp(argv[i], "-q")) {
        style->level = FKV_LOG_WARNING;
        return 1;
    }
    if (!strcmp(argv[i], "-v") || !strcmp(argv[i], "--verbose")) {
        style->level = FKV_LOG_DEBUG;
        return 1;
    }
    if (strncmp(argv[i], format, n) != 0 || (argv[i][n] && argv[i][n] != '=')) return 0;
    const char *value = argv[i][n] ? argv[i] + n + 1 : i + 1 < argc ? argv[i + 1] : "";
    style->json = !strcmp(value, "json");
    return !style->json && strcmp(value, "text") != 0 ? -1 : argv[i][n] ? 1 : 2;
}

/* Splits argv into the job file and the overrides. */
static fkv_status parse_args(int argc, char **argv, const char *usage, const char **path,
                             const char **overrides, size_t *n, fkv_err *err)
{
    fkv_log_style style = fkv_log_get_style();
    *path = NULL;
    *n = 0;
    for (int i = 1; i < argc; i++) {
        const int words = parse_style(argc, argv, i, &style);
        if (words < 0) return fkv_command_bad_option(argv[0], argv[i], usage, err);
        if (words) {
            i += words - 1;
        } else if (!strcmp(argv[i], "-s")) {
            if (++i == argc) return fkv_command_bad_option(argv[0], "-s", usage, err);
            overrides[(*n)++] = argv[i];
        } else if (!strncmp(argv[i], "-s", 2) && argv[i][2]) {
            overrides[(*n)++] = argv[i] + 2;
        } else if (argv[i][0] == '-') {
            return fkv_command_bad_option(argv[0], argv[i], usage, err);
        } else if (*path) {
            return fkv_fail(err, FKV_E_INPUT, "%s: takes one JOB.ini, not %s besides", argv[0], argv[i]);
        } else {
            *path = argv[i];
        }
    }
    if (*path) fkv_log_set_style(style);
    return *path ? FKV_OK : fkv_fail(err, FKV_E_INPUT, "%s: JOB.ini is missing", argv[0]);
}

static void add_error(fkv_errs *errs, fkv_err *err)
{
    fkv_errs_add(errs, err);
    *err = (fkv_err){0};
}

/* The budgets or scores that the job brings must fit the model; planning reads them again. */
static void check_budgets(const fkv_setup *s, fkv_errs *errs)
{
    const fkv_job *j = s->job;
    const fkv_config *c = &s->config;
    fkv_profile profile = {0};
    fkv_err err = {0};
    if (!j->profile.budgets_file && (j->profile.method != FKV_METHOD_SCORES || !j->profile.scores_file))
        return;
    double *scores = fkv_calloc((size_t)c->n_layers * (size_t)c->n_kv_heads, sizeof *scores);
    fkv_status st =
        scores ? fkv_profile_init(&profile, c->n_layers, c->n_kv_heads, &err) : fkv_fail_memory(&err);
    if (!st && j->profile.budgets_file)
        st = fkv_budget_read_file(j->profile.budgets_file, &profile, &err);
    else if (!st)
        st = fkv_scores_read_file(j->profile.scores_file, c->n_layers, c->n_heads, c->n_kv_heads, scores,
                                  &err);
    if (st) add_error(errs, &err);
    fkv_profile_free(&profile);
    free(scores);
}

/* auto: every GPU there is, as far as ranks and replicas can use them. */
static int devices_of(const fkv_setup *s)
{
    const fkv_job *j = s->job;
    if (j->engine.devices) return (int)j->engine.devices;
    const int64_t n = s->backend ? s->backend->n_devices() : 1, found = n < 1 ? 1 : n;
    const int64_t ranks = j->engine.tensor_parallel, replicas = j->engine.data_parallel;
    const int64_t most = ranks ? ranks : s->config.n_kv_heads; /* of a replica */
    if (replicas > found) return (int)found;
    if (replicas) return (int)(replicas * (found / replicas < most ? found / replicas : most));
    return (int)(ranks && found > ranks ? found / ranks * ranks : found);
}

int fkv_setup_devices_each(const fkv_setup *s)
{
    return s->n_devices > s->n_replicas ? s->n_devices / s->n_replicas : 1;
}

/* The most ranks, each on a device, into which so many devices can be split. */
static int most_ranks(int n_devices, int heads)
{
    int ranks = n_devices < heads ? n_devices : heads;
    while (n_devices % ranks) ranks--;
    return ranks;
}

static void set_sizes(fkv_setup *s, int n_devices)
{
    const fkv_job *j = s->job;
    s->auto_ranks = !j->engine.tensor_parallel;
    s->auto_replicas = !j->engine.data_parallel;
    s->auto_slots = !j->engine.slots;
    s->n_devices = n_devices;
    s->n_replicas = s->auto_replicas ? 1 : (int)j->engine.data_parallel;
    s->n_ranks = s->auto_ranks ? most_ranks(fkv_setup_devices_each(s), s->config.n_kv_heads)
                               : (int)j->engine.tensor_parallel;
    if (s->auto_replicas && n_devices > s->n_ranks) s->n_replicas = n_devices / s->n_ranks;
    s->n_slots = s->auto_slots ? 1 : (int)j->engine.slots;
}

/* Whether the backend can run the model on groups of so many devices, one group behind the other;
 * as_asked: with what the job sets, too. */
static bool supported(const fkv_setup *s, int n_groups, int n_devices, bool as_asked, fkv_err *err)
{
    const fkv_memory_shape shape = {.config = &s->config,
                                    .n_ranks = s->n_ranks,
                                    .n_devices = n_devices,
                                    .n_slots = as_asked ? s->n_slots : 1,
                                    .max_prompt = 1,
                                    .form = fkv_setup_form(s),
                                    .window = as_asked ? (int)s->job->profile.window : 1,
                                    .scorers = as_asked ? fkv_scorer_bit(fkv_setup_scorer(s)) : 0};
    *err = (fkv_err){0};
    for (int i = 0; i < n_groups; i++)
        if (fkv_memory_supported(&shape, i * n_devices, s->backend, err)) return false;
    return true;
}

/* The same with all that the job says. Devices that may come into one group must be able to. */
static bool supported_as_asked(const fkv_setup *s, fkv_err *err)
{
    if (s->auto_ranks || !s->job->engine.devices) return supported(s, 1, s->n_devices, true, err);
    const int each = fkv_setup_devices_each(s);
    return supported(s, s->n_devices / each, each, true, err);
}

/* Where the job leaves the number of devices to us: the most that can work together. */
static bool find_devices(fkv_setup *s, fkv_err *why)
{
    fkv_err err = {0};
    if (supported_as_asked(s, why)) return true;
    if (s->job->engine.devices || !supported(s, 1, 1, true, &err)) return false;
    const int found = s->n_devices;
    for (int n = found - 1; n > 0; n--) {
        set_sizes(s, n);
        if (supported_as_asked(s, &err)) break;
    }
    fkv_log("engine.devices = auto takes %d of %d: %s", s->n_devices, found, why->message);
    return true;
}

/* The backend must be able to run the model; auto takes one that is. What the job itself asks
 * too much of is no reason to leave the GPU. */
static void choose_backend(fkv_setup *s, fkv_errs *errs)
{
    fkv_err err = {0}, why = {0};
    set_sizes(s, devices_of(s));
    if (!s->backend || find_devices(s, &why)) return;
    if (s->job->engine.backend == FKV_JOB_BACKEND_AUTO && !supported(s, 1, 1, false, &err)) {
        s->backend = fkv_backend_cpu(); /* the reference, which runs every model */
        fkv_log("engine.backend = auto takes %s: %s", s->backend->name, why.message);
        set_sizes(s, devices_of(s));
        if (find_devices(s, &why)) return;
    }
    err = (fkv_err){0};
    fkv_fail_at(&err, FKV_E_INPUT, s->job->path, 0, "engine.backend", "%s", why.message);
    add_error(errs, &err);
}

/* Whether devices that may come into one group reach each other's memory. */
static bool in_reach(const fkv_setup *s, int each)
{
    for (int first = 0; first + each <= s->n_devices; first += each) {
        const fkv_group group = {.n_devices = each, .first_device = first};
        if (!s->backend->reach(&group)) return false;
    }
    return true;
}

/* What a head keeps can't go to a device that is out of reach of the one that prefills it. */
static void check_reach(fkv_setup *s, fkv_errs *errs)
{
    fkv_job *j = s->job;
    fkv_err err = {0};
    const int each = s->auto_ranks && s->auto_replicas ? s->n_devices : fkv_setup_devices_each(s);
    if (!s->backend || in_reach(s, each)) return;
    if (j->plan.mode == FKV_JOB_STANDARD || j->plan.max_copies == 0) return;
    if (j->plan.mode_given) {
        fkv_fail_at(&err, FKV_E_INPUT, j->path, 0, "plan.mode",
                    "moves heads between devices, and the %d here can't reach each other's memory: use "
                    "standard, or engine.devices = 1",
                    each);
        add_error(errs, &err);
        return;
    }
    fkv_log("plan.mode is standard: the %d devices can't reach each other's memory", each);
    j->plan.mode = FKV_JOB_STANDARD;
}

/* Added tokens beyond the model's are allowed: a prompt that has one is an error row (prompt.c). */
static void check_vocabulary(const fkv_setup *s, fkv_errs *errs)
{
    fkv_err err = {0};
    const int model = s->config.vocab;
    if (!s->tokenizer) return;
    const int all = fkv_tokenizer_n_ids(s->tokenizer), needed = fkv_tokenizer_n_needed_ids(s->tokenizer);
    if (needed > model) {
        fkv_fail_at(&err, FKV_E_INPUT, s->job->model.path, 0, "tokenizer.json",
                    "needs %d ids (0 to %d), the model has %d (0 to %d)", needed, needed - 1, model,
                    model - 1);
        add_error(errs, &err);
    } else if (all > model) {
        fkv_log("tokenizer.json has added tokens that the model does not: %d ids (0 to %d), the model %d (0 "
                "to %d); a prompt that holds one of them becomes an error row",
                all, all - 1, model, model - 1);
    }
}

/* Every rank has a device, and every replica devices of its own. */
static void check_devices(const fkv_setup *s, fkv_errs *errs)
{
    const char *path = s->job->path;
    const int n = s->n_devices, each = fkv_setup_devices_each(s), ranks = s->n_ranks;
    fkv_err err = {0};
    if (n > s->n_replicas && n % s->n_replicas)
        fkv_fail_at(&err, FKV_E_INPUT, path, 0, "engine.devices",
                    "%d devices for %d replicas (engine.data_parallel): each needs as many", n,
                    s->n_replicas);
    else if (each > ranks)
        fkv_fail_at(&err, FKV_E_INPUT, path, 0, "engine.devices",
                    "%d devices for %d ranks: a device needs a rank", each, ranks);
    if (err.status) add_error(errs, &err);
    if (s->backend && !s->backend->shares_host && n < s->n_replicas) {
        fkv_fail_at(&err, FKV_E_INPUT, path, 0, "engine.data_parallel",
                    "%d replicas on %d devices: each needs one of its own", s->n_replicas, n);
        add_error(errs, &err);
    }
    if (each > 255 || (ranks + each - 1) / each > FKV_MAX_LOCAL_RANKS) {
        fkv_fail_at(&err, FKV_E_INPUT, path, 0, "engine.tensor_parallel",
                    "%d ranks on %d devices are too many: at most %d on a device, and 255 devices", ranks,
                    each, FKV_MAX_LOCAL_RANKS);
        add_error(errs, &err);
    }
}

/* What needs both the job and the model. */
static void check_against_model(fkv_setup *s, fkv_errs *errs)
{
    const fkv_job *j = s->job;
    const fkv_config *c = &s->config;
    fkv_err err = {0};
    choose_backend(s, errs);
    check_reach(s, errs);
    if (s->n_ranks > c->n_kv_heads) {
        fkv_fail_at(&err, FKV_E_INPUT, j->path, 0, "engine.tensor_parallel",
                    "more ranks (%d) than the model's KV heads (%d) is not supported", s->n_ranks,
                    c->n_kv_heads);
        add_error(errs, &err);
    }
    check_devices(s, errs);
    if (j->engine.max_new_tokens >= c->max_positions) {
        fkv_fail_at(&err, FKV_E_INPUT, j->path, 0, "engine.max_new_tokens",
                    "%lld leaves no room in the model's %d positions", (long long)j->engine.max_new_tokens,
                    c->max_positions);
        add_error(errs, &err);
    }
    check_vocabulary(s, errs);
    s->limits = (fkv_prompt_limits){.max_positions = c->max_positions,
                                    .n_ids = c->vocab,
                                    .max_prompt = j->model.max_prompt_tokens,
                                    .max_new = j->engine.max_new_tokens,
                                    .truncate = j->model.truncate};
    if (j->model.max_prompt_tokens > c->max_positions - 1)
        fkv_log("model.max_prompt_tokens %lld is lowered to what the model's %d positions leave beside the "
                "new tokens",
                (long long)j->model.max_prompt_tokens, c->max_positions);
}

/* What a new line is as a token: LongBench's samsum ends with it. */
static fkv_status find_newline(fkv_setup *s, fkv_err *err)
{
    fkv_tokenizer_scratch *scratch = NULL;
    fkv_ids ids = {0};
    fkv_status st = fkv_tokenizer_scratch_new(s->tokenizer, &scratch, err);
    if (!st) st = fkv_tokenizer_encode(s->tokenizer, scratch, "\n", 1, false, &ids, NULL, NULL, err);
    if (!st && ids.len && ids.data[ids.len - 1] < s->config.vocab) s->newline = ids.data[ids.len - 1];
    fkv_ids_free(&ids);
    fkv_tokenizer_scratch_free(scratch);
    return st;
}

static fkv_status open_template(fkv_setup *s, fkv_err *err)
{
    const fkv_job *j = s->job;
    const char *from = j->model.chat_template;
    json_t *tokens = NULL;
    json_error_t why;
    fkv_status st = FKV_OK;
    if (j->model.template_vars) {
        const char *text = j->model.template_vars;
        s->template_vars = fkv_json_parse(text, strlen(text), JSON_ALLOW_NUL, &why);
        if (!s->template_vars) return fkv_fail_memory(err); /* the job was parsed */
    }
    if (!strcmp(from, "none")) return FKV_OK;
    if (!strcmp(from, "auto")) return fkv_template_open_model(j->model.path, &s->template, err);
    st = fkv_template_tokens(j->model.path, &tokens, err);
    if (!st) st = fkv_template_open_file(from, tokens, &s->template, err);
    json_decref(tokens);
    return st;
}

/* How prompts are made and tokens chosen. */
static void open_manners(fkv_setup *s, bool have_config, fkv_errs *errs)
{
    const fkv_job *j = s->job;
    fkv_err err = {0};
    s->newline = -1;
    s->generation = (fkv_generation){.repetition_penalty = 1};
    if (have_config && j->sampling.generation_config == FKV_GENERATION_MODEL &&
        fkv_generation_read(j->model.path, s->config.vocab, &s->generation, &err))
        add_error(errs, &err);
    if (have_config && s->tokenizer && find_newline(s, &err)) add_error(errs, &err);
    if (open_template(s, &err)) add_error(errs, &err);
    for (size_t i = 0; i < j->sampling.n_stop; i++)
        if (fkv_buf_append(&s->stops, j->sampling.stop[i], strlen(j->sampling.stop[i]) + 1, &err))
            add_error(errs, &err);
}

static const char *backend_name(const fkv_job *j)
{
    return j->engine.backend == FKV_JOB_BACKEND_CPU    ? "cpu"
           : j->engine.backend == FKV_JOB_BACKEND_CUDA ? "cuda"
                                                       : "auto";
}

static void *wake(void *job)
{
    fkv_backend_wake(backend_name(job));
    return NULL;
}

static void find_backend(fkv_setup *s, fkv_errs *errs)
{
    const char *name = backend_name(s->job);
    fkv_err err = {0};
    s->backend = fkv_backend_find(name);
    if (s->backend) return;
    fkv_fail_at(&err, FKV_E_INPUT, s->job->path, 0, "engine.backend", "%s %s", name, fkv_backend_why(name));
    add_error(errs, &err);
}

/* The tokenizer takes a while, and so does the GPU's driver: beside each other. */
static void open_tokenizer_and_backend(fkv_setup *s, fkv_errs *errs)
{
    fkv_err err = {0};
    pthread_t waking;
    const bool wakes =
        fkv_backend_sleeps(backend_name(s->job)) && !pthread_create(&waking, NULL, wake, s->job);
    if (fkv_tokenizer_open(s->job->model.path, &s->tokenizer, &err)) add_error(errs, &err);
    if (wakes) pthread_join(waking, NULL);
    find_backend(s, errs);
}

static void open_model(fkv_setup *s, fkv_errs *errs)
{
    const fkv_job *j = s->job;
    fkv_err err = {0};
    /* A folder of another layout says so once, not each of our files that it lacks. */
    if (fkv_model_files_check(j->model.path, &err)) {
        add_error(errs, &err);
        return;
    }
    const bool have_config = !fkv_config_read(j->model.path, &s->config, &err);
    if (!have_config) add_error(errs, &err);
    if (!fkv_job_is_dummy(j)) {
        if (fkv_safetensors_open(j->model.path, &s->weights, &err) ||
            (have_config && fkv_tensors_check(&s->config, s->weights, &err)))
            add_error(errs, &err);
    } else if (have_config && fkv_tensors_open_dummy(&s->config, j->job.seed, &s->weights, &err)) {
        add_error(errs, &err);
    }
    open_tokenizer_and_backend(s, errs);
    open_manners(s, have_config, errs);
    if (have_config) check_against_model(s, errs);
    if (have_config) check_budgets(s, errs);
}

int fkv_report_errors(const fkv_errs *errs)
{
    int code = 0;
    /* Where the system failed, what else looks wrong may come from that. */
    for (int i = 0; errs->at && i < errs->n && i < FKV_ERRS_MAX; i++)
        if (errs->at[i].status == FKV_E_SYSTEM) return fkv_report_error(&errs->at[i]);
    for (int i = 0; errs->at && i < errs->n && i < FKV_ERRS_MAX; i++) {
        const int c = fkv_report_error(&errs->at[i]);
        if (c > code) code = c;
    }
    if (errs->n > FKV_ERRS_MAX) fkv_log_at(FKV_LOG_ERROR, "and %d more", errs->n - FKV_ERRS_MAX);
    return code ? code : fkv_exit_code(FKV_E_SYSTEM);
}

int fkv_setup_parse(int argc, char **argv, const char *usage, fkv_setup *s, fkv_errs *errs)
{
    const char *path, **overrides;
    size_t n;
    fkv_err err = {0};
    *s = (fkv_setup){0};
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
            fputs(usage, stdout);
            return 0;
        }
    }
    overrides = fkv_calloc((size_t)argc, sizeof *overrides);
    if (!overrides) {
        fkv_fail_memory(&err);
        return fkv_report_error(&err);
    }
    const fkv_status st = parse_args(argc, argv, usage, &path, overrides, &n, &err);
    if (!st) fkv_job_read(path, overrides, n, &s->job, errs);
    free(overrides);
    if (!st) return -1;
    fkv_command_end(st, &err);
    fputs(usage, stderr);
    return fkv_exit_code(st);
}

void fkv_setup_load(fkv_setup *s, fkv_errs *errs)
{
    if (s->job->model.path) open_model(s, errs);
    fkv_record_parser_open(s->job, &s->parser, errs);
}

void fkv_setup_close(fkv_setup *s)
{
    fkv_buf_free(&s->stops);
    json_decref(s->template_vars);
    fkv_template_close(s->template);
    fkv_tokenizer_close(s->tokenizer);
    fkv_safetensors_close(s->weights);
    fkv_record_parser_close(s->parser);
    fkv_job_free(s->job);
    *s = (fkv_setup){0};
}

int fkv_setup_threads(const fkv_setup *s)
{
    const int64_t asked = s->job->engine.threads;
    const int all = asked ? (int)asked : fkv_machine_processors();
    const int devices = s->n_devices > s->n_replicas ? s->n_devices : s->n_replicas;
    return all > devices ? all / devices : 1;
}

void fkv_setup_log_sharing(const fkv_setup *s)
{
    const int each = fkv_setup_devices_each(s);
    if (s->auto_ranks || s->n_ranks <= each) return;
    fkv_log("engine.tensor_parallel: %d ranks share %d %s and take turns: that gains nothing and costs speed "
            "(engine.tensor_parallel = %d does not), and the plan's figures are for ranks with a device each",
            s->n_ranks, each, each == 1 ? "device" : "devices", each);
}

/* The first run's day, in UTC, where the job doesn't say it. */
static void set_date(const fkv_setup *s, fkv_layout *layout)
{
    const time_t now = time(NULL);
    struct tm day;
    if (!s->template || !fkv_template_is_dated(s->template)) return;
    if (s->job->model.date)
        snprintf(layout->date, sizeof layout->date, "%s", s->job->model.date);
    else
        strftime(layout->date, sizeof layout->date, "%Y-%m-%d", gmtime_r(&now, &day));
}

fkv_layout fkv_setup_layout(const fkv_setup *s)
{
    fkv_layout layout = {.replicas = s->n_replicas,
                         .ranks = s->n_ranks,
                         .devices = fkv_setup_devices_each(s),
                         .slots = s->n_slots,
                         .max_prompt = fkv_prompt_longest(&s->limits),
                         .max_tokens = s->config.max_positions};
    set_date(s, &layout);
    return layout;
}

fkv_engine_options fkv_setup_engine_options(const fkv_setup *s, const fkv_layout *layout)
{
    const fkv_job *j = s->job;
    return (fkv_engine_options){.backend = s->backend,
                                .n_ranks = layout->ranks,
                                .n_devices = layout->devices,
                                .n_sharing = s->backend->shares_host ? layout->replicas : 1,
                                .n_slots = layout->slots,
                                .max_prompt = layout->max_prompt,
                                .max_tokens = layout->max_tokens,
                                .scorer = fkv_setup_scorer(s),
                                .more_scorers = s->more_scorers,
                                .sinks = (int)j->profile.sinks,
                                .window = (int)j->profile.window,
                                .kernel = (int)j->profile.kernel,
                                .kv_form = fkv_setup_kv_form(s),
                                .n_threads = fkv_setup_threads(s),
                                .form = fkv_setup_form(s),
                                .rules = fkv_setup_rules(s),
                                .measured = {.temperature = (float)j->sampling.temperature,
                                             .top_p = (float)j->sampling.top_p,
                                             .top_k = (int32_t)j->sampling.top_k}};
}

fkv_token_rules fkv_setup_rules(const fkv_setup *s)
{
    fkv_token_rules rules = {.n_ends = s->config.n_eos,
                             .suppressed = s->generation.suppressed,
                             .n_suppressed = s->generation.n_suppressed};
    _Static_assert((int)FKV_MAX_EOS <= (int)FKV_MAX_ENDS, "all ends fit");
    memcpy(rules.ends, s->config.eos, (size_t)s->config.n_eos * sizeof *rules.ends);
    return rules;
}

fkv_prompt_source fkv_setup_prompts(const fkv_setup *s, const fkv_layout *layout)
{
    return (fkv_prompt_source){.tokenizer = s->tokenizer,
                               .template = s->template,
                               .variables = s->template_vars,
                               .date = layout->date[0] ? layout->date : NULL,
                               .limits = s->limits};
}

bool fkv_setup_compresses(const fkv_setup *s)
{
    return s->job->profile.budgets_file || s->job->profile.method != FKV_METHOD_NONE;
}

fkv_scorer fkv_setup_scorer(const fkv_setup *s)
{
    if (!fkv_setup_compresses(s)) return FKV_SCORER_SNAPKV;
    return (fkv_scorer)s->job->profile.score; /* the same order: tests/unit/test_planning.c */
}

fkv_form fkv_setup_form(const fkv_setup *s)
{
    return fkv_job_is_fp8(s->job) ? FKV_FORM_FP8 : FKV_FORM_NATIVE;
}

fkv_kv_form fkv_setup_kv_form(const fkv_setup *s)
{
    return (fkv_kv_form)s->job->engine.kv_cache; /* the same order: tests/unit/test_planning.c */
}

fkv_plan_mode fkv_setup_mode(const fkv_setup *s)
{
    return (fkv_plan_mode)s->job->plan.mode; /* the same order: tests/unit/test_planning.c */
}

fkv_plan_problem fkv_setup_plan_problem(const fkv_setup *s, int n_ranks, int n_slots, const double *tokens,
                                        const fkv_cost *cost, double collectives_us)
{
    return (fkv_plan_problem){.n_layers = s->config.n_layers,
                              .n_kv_heads = s->config.n_kv_heads,
                              .n_ranks = n_ranks,
                              .n_slots = n_slots,
                              .tokens = tokens,
                              .cost = *cost,
                              .max_copies = (int)s->job->plan.max_copies,
                              .collectives_us = collectives_us};
}
