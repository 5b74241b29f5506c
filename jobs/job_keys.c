/* The table of the job file's keys, and finding a key in it.
 *
 * Everything that is said about a key is said in its row here. Owns no memory.
 * Not for: the INI syntax (job.c), values (job_value.c, job_list.c), writing
 * back (job_write.c).
 */
#include "jobs/job_keys.h"

#include <ctype.h>
#include <stdarg.h>
#include <string.h>

#define AT(field) offsetof(fkv_job, field)

/* Identity. Not in it: where things lie (job.output, paths), how far and how
 * carefully a run goes (max_errors, retry_errors, restart, grace), which shards
 * this process does (part), where it computes (backend, devices, threads, kv_memory: the caller
 * pins the kind of device), and what changes who computes but no answer
 * (plan.*, data_parallel). Ranks and slots change rounding, so they are in it. */
const fkv_key fkv_keys[] = {
    {.section = "job",
     .name = "name",
     .type = FKV_KEY_TEXT,
     .offset = AT(job.name),
     .help = "the job's name, for reports"},
    {.section = "job",
     .name = "output",
     .type = FKV_KEY_PATH,
     .offset = AT(job.output),
     .help = "folder that gets the output"},
    {.section = "job",
     .name = "seed",
     .type = FKV_KEY_SEED,
     .identity = FKV_ID_VALUE,
     .offset = AT(job.seed),
     .fallback = "0",
     .help = "of sampling and of the profile's sample"},
    {.section = "job",
     .name = "limit",
     .type = FKV_KEY_INT,
     .identity = FKV_ID_VALUE,
     .offset = AT(job.limit),
     .fallback = "0",
     .hi = FKV_KEY_WHOLE_MAX,
     .help = "the input's first N records only; 0 for all"},
    {.section = "job",
     .name = "max_errors",
     .type = FKV_KEY_ERRORS,
     .offset = AT(job.max_errors),
     .fallback = "0",
     .hi = FKV_KEY_WHOLE_MAX,
     .help = "stop early after so many error rows over all resumes, or a percentage of the finished "
             "records such as 1%, from 1,000 on or at the end; 0 for never"},
    {.section = "job",
     .name = "retry_errors",
     .type = FKV_KEY_FLAG,
     .offset = AT(job.retry_errors),
     .fallback = "no",
     .choices = "no yes",
     .help = "a rerun does the error rows again"},
    {.section = "job",
     .name = "restart",
     .type = FKV_KEY_FLAG,
     .offset = AT(job.restart),
     .fallback = "no",
     .choices = "no yes",
     .help = "yes moves an old output aside"},
    {.section = "job",
     .name = "grace",
     .type = FKV_KEY_INT,
     .offset = AT(job.grace_s),
     .fallback = "10",
     .hi = 86400,
     .help = "seconds to finish what is in flight after SIGTERM"},

    {.section = "input",
     .name = "archives",
     .type = FKV_KEY_ARCHIVES,
     .identity = FKV_ID_FILES,
     .offset = AT(input.files),
     .help = "patterns of tar, zip, 7z or jsonl files, also gz, zst, xz, bz2, and folders of them"},
    {.section = "input",
     .name = "members",
     .type = FKV_KEY_MEMBERS,
     .identity = FKV_ID_VALUE,
     .offset = AT(input.members),
     .fallback = "*.jsonl",
     .help = "patterns of the members to read; * also matches /"},
    {.section = "input",
     .name = "format",
     .type = FKV_KEY_CHOICE,
     .identity = FKV_ID_VALUE,
     .offset = AT(input.format),
     .fallback = "auto",
     .choices = "auto longbench prompt openai qa ruler",
     .help = "of the records"},
    {.section = "input",
     .name = "plain_datasets",
     .type = FKV_KEY_NAMES,
     .identity = FKV_ID_VALUE,
     .offset = AT(input.plain_datasets),
     .fallback = "trec triviaqa samsum lsht lcc repobench-p",
     .help = "LongBench's that are asked without a chat template, with and without _e"},
    {.section = "input",
     .name = "prompts",
     .type = FKV_KEY_PATH,
     .identity = FKV_ID_FILE,
     .offset = AT(input.prompts),
     .fallback = "",
     .help = "JSON file: template by dataset (longbench)"},
    {.section = "input",
     .name = "max_new_tokens_by",
     .type = FKV_KEY_PATH,
     .identity = FKV_ID_FILE,
     .offset = AT(input.max_new_tokens_by),
     .fallback = "",
     .help = "JSON file: new-token limit by dataset"},
    {.section = "input",
     .name = "max_record_bytes",
     .type = FKV_KEY_SIZE,
     .identity = FKV_ID_VALUE,
     .offset = AT(input.max_record_bytes),
     .fallback = "64M",
     .lo = 64,
     .hi = 1 << 30,
     .help = "longer lines become error rows"},
    {.section = "input",
     .name = "max_window",
     .type = FKV_KEY_SIZE,
     .identity = FKV_ID_VALUE,
     .offset = AT(input.max_window),
     .fallback = "128M",
     .lo = 1024,
     .hi = 2147483648.0,
     .help = "window of zst data, which its decoder holds in memory; larger ones are refused, up to 2G"},
    {.section = "input",
     .name = "part",
     .type = FKV_KEY_PART,
     .offset = AT(input.part),
     .fallback = "0/1",
     .lo = 0,
     .hi = 100000,
     .help = "i/n: this process does the shards j with j mod n = i; auto: those that it finds free"},

    {.section = "model",
     .name = "path",
     .type = FKV_KEY_PATH,
     .identity = FKV_ID_MODEL,
     .offset = AT(model.path),
     .help = "folder in Hugging Face layout"},
    {.section = "model",
     .name = "weights",
     .type = FKV_KEY_FLAG,
     .identity = FKV_ID_VALUE,
     .offset = AT(model.dummy),
     .fallback = "files",
     .choices = "files dummy",
     .help = "dummy: made-up weights, for benchmarks"},
    {.section = "model",
     .name = "chat_template",
     .type = FKV_KEY_FILE,
     .identity = FKV_ID_FILE,
     .offset = AT(model.chat_template),
     .fallback = "auto",
     .choices = "auto none",
     .help = "around messages and what a user says; auto: the model folder's, where it has one"},
    {.section = "model",
     .name = "template_vars",
     .type = FKV_KEY_OBJECT,
     .identity = FKV_ID_VALUE,
     .offset = AT(model.template_vars),
     .fallback = "",
     .help = "JSON object: variables of the chat template"},
    {.section = "model",
     .name = "date",
     .type = FKV_KEY_DATE,
     .identity = FKV_ID_VALUE,
     .offset = AT(model.date),
     .fallback = "",
     .help = "YYYY-MM-DD: the chat template's today; empty: the first run's day"},
    {.section = "model",
     .name = "max_prompt_tokens",
     .type = FKV_KEY_INT,
     .identity = FKV_ID_VALUE,
     .offset = AT(model.max_prompt_tokens),
     .fallback = "0",
     .hi = INT32_MAX,
     .help = "longer prompts are cut; 0: what the model's positions leave"},
    {.section = "model",
     .name = "truncate",
     .type = FKV_KEY_CHOICE,
     .identity = FKV_ID_VALUE,
     .offset = AT(model.truncate),
     .fallback = "middle",
     .choices = "middle left right error longbench",
     .help = "where a long prompt is cut, or an error row"},

    {.section = "profile",
     .name = "sample",
     .type = FKV_KEY_INT,
     .identity = FKV_ID_VALUE,
     .offset = AT(profile.sample),
     .fallback = "64",
     .lo = 1,
     .hi = 100000,
     .help = "records to measure budgets and lengths on"},
    {.section = "profile",
     .name = "method",
     .type = FKV_KEY_CHOICE,
     .identity = FKV_ID_VALUE,
     .offset = AT(profile.method),
     .fallback = "ada-snapkv",
     .choices = "ada-snapkv uniform scores none",
     .help = "where the heads' budgets come from"},
    {.section = "profile",
     .name = "window",
     .type = FKV_KEY_INT,
     .identity = FKV_ID_VALUE,
     .offset = AT(profile.window),
     .fallback = "32",
     .lo = 1,
     .hi = 1024,
     .help = "last tokens that score the others and are always kept"},
    {.section = "profile",
     .name = "kernel",
     .type = FKV_KEY_INT,
     .identity = FKV_ID_VALUE,
     .offset = AT(profile.kernel),
     .fallback = "7",
     .lo = 1,
     .hi = 63,
     .help = "width of the max pooling over scores, odd"},
    {.section = "profile",
     .name = "floor",
     .type = FKV_KEY_REAL,
     .identity = FKV_ID_VALUE,
     .offset = AT(profile.floor),
     .fallback = "0.5",
     .hi = 1,
     .help = "share of the budget that is spread evenly over the heads"},
    {.section = "profile",
     .name = "budget",
     .type = FKV_KEY_BUDGET,
     .identity = FKV_ID_VALUE,
     .offset = AT(profile.budget),
     .fallback = "1024",
     .lo = 1,
     .hi = INT32_MAX,
     .help = "mean tokens a head keeps, or a percentage of the prompt such as 10%"},
    {.section = "profile",
     .name = "budgets_file",
     .type = FKV_KEY_PATH,
     .identity = FKV_ID_FILE,
     .offset = AT(profile.budgets_file),
     .fallback = "",
     .help = "budgets in profile.json's form; method and budget are not used then"},
    {.section = "profile",
     .name = "scores_file",
     .type = FKV_KEY_PATH,
     .identity = FKV_ID_FILE,
     .offset = AT(profile.scores_file),
     .fallback = "",
     .help = "head scores, for method = scores"},

    {.section = "plan",
     .name = "mode",
     .type = FKV_KEY_CHOICE,
     .offset = AT(plan.mode),
     .fallback = "fair-copying",
     .choices = "standard best-effort fair-copying",
     .help = "how heads are placed on ranks"},
    {.section = "plan",
     .name = "max_copies",
     .type = FKV_KEY_AUTO,
     .offset = AT(plan.max_copies),
     .fallback = "auto",
     .lo = 0,
     .hi = 1 << 20,
     .help = "per layer"},
    {.section = "plan",
     .name = "calibration",
     .type = FKV_KEY_FILE,
     .offset = AT(plan.calibration),
     .fallback = "auto",
     .choices = "auto measure stated",
     .help = "constants of the cost model: measured once and kept by the machine, measured anew, stated "
             "rates, or a file"},

    {.section = "engine",
     .name = "backend",
     .type = FKV_KEY_CHOICE,
     .offset = AT(engine.backend),
     .fallback = "auto",
     .choices = "auto cpu cuda",
     .help = "what computes"},
    {.section = "engine",
     .name = "tensor_parallel",
     .type = FKV_KEY_AUTO,
     .identity = FKV_ID_VALUE,
     .offset = AT(engine.tensor_parallel),
     .fallback = "auto",
     .lo = 1,
     .hi = 1024,
     .help = "ranks"},
    {.section = "engine",
     .name = "data_parallel",
     .type = FKV_KEY_AUTO,
     .offset = AT(engine.data_parallel),
     .fallback = "auto",
     .lo = 1,
     .hi = 1024,
     .help = "replicas: groups of ranks that answer records side by side"},
    {.section = "engine",
     .name = "devices",
     .type = FKV_KEY_AUTO,
     .offset = AT(engine.devices),
     .fallback = "auto",
     .lo = 1,
     .hi = 1024,
     .help = "GPUs to use, or CPU devices"},
    {.section = "engine",
     .name = "slots",
     .type = FKV_KEY_AUTO,
     .identity = FKV_ID_VALUE,
     .offset = AT(engine.slots),
     .fallback = "auto",
     .lo = 1,
     .hi = 4096,
     .help = "records decoded at the same time"},
    {.section = "engine",
     .name = "threads",
     .type = FKV_KEY_AUTO,
     .offset = AT(engine.threads),
     .fallback = "auto",
     .lo = 1,
     .hi = 4096,
     .help = "host threads that compute, of all devices together; auto: the processors that it may use"},
    {.section = "engine",
     .name = "kv_memory",
     .type = FKV_KEY_AUTO,
     .offset = AT(engine.kv_mib),
     .fallback = "auto",
     .lo = 1,
     .hi = 1 << 30,
     .help = "MiB of a rank's KV pages at the most, but room for the largest record; auto: what is free"},
    {.section = "engine",
     .name = "max_new_tokens",
     .type = FKV_KEY_INT,
     .identity = FKV_ID_VALUE,
     .offset = AT(engine.max_new_tokens),
     .fallback = "128",
     .lo = 1,
     .hi = 1 << 20,
     .help = "for records with no limit of their own or of their dataset"},

    {.section = "sampling",
     .name = "temperature",
     .type = FKV_KEY_REAL,
     .identity = FKV_ID_VALUE,
     .offset = AT(sampling.temperature),
     .fallback = "0",
     .hi = 100,
     .help = "0: the likeliest token always"},
    {.section = "sampling",
     .name = "top_p",
     .type = FKV_KEY_REAL,
     .identity = FKV_ID_VALUE,
     .offset = AT(sampling.top_p),
     .fallback = "1",
     .hi = 1,
     .lo_open = true,
     .help = "sample from the likeliest tokens of this total probability"},
    {.section = "sampling",
     .name = "top_k",
     .type = FKV_KEY_INT,
     .identity = FKV_ID_VALUE,
     .offset = AT(sampling.top_k),
     .fallback = "0",
     .hi = INT32_MAX,
     .help = "sample from so many likeliest tokens; 0: all"},
    {.section = "sampling",
     .name = "generation_config",
     .type = FKV_KEY_CHOICE,
     .identity = FKV_ID_VALUE,
     .offset = AT(sampling.generation_config),
     .fallback = "model",
     .choices = "model ignore",
     .help = "ignore: nothing of the model's but its stop tokens"},
    {.section = "sampling",
     .name = "stop",
     .type = FKV_KEY_STOP,
     .identity = FKV_ID_VALUE,
     .offset = AT(sampling.stop),
     .fallback = "",
     .help = "JSON array of strings that end an answer"},

    {.section = "output",
     .name = "records_per_shard",
     .type = FKV_KEY_INT,
     .identity = FKV_ID_VALUE,
     .offset = AT(output.records_per_shard),
     .fallback = "1000",
     .lo = 1,
     .hi = 10000000,
     .help = "records in each output file"},
    {.section = "output",
     .name = "compression_level",
     .type = FKV_KEY_INT,
     .identity = FKV_ID_VALUE,
     .offset = AT(output.compression_level),
     .fallback = "3",
     .lo = 1,
     .hi = 19,
     .help = "of zstd"},
    {.section = "output",
     .name = "token_ids",
     .type = FKV_KEY_FLAG,
     .identity = FKV_ID_VALUE,
     .offset = AT(output.token_ids),
     .fallback = "no",
     .choices = "no yes",
     .help = "yes adds the generated ids to each row"},
};
const size_t fkv_n_keys = sizeof fkv_keys / sizeof *fkv_keys;

void fkv_key_full_name(const fkv_key *key, char name[FKV_KEY_NAME_MAX])
{
    snprintf(name, FKV_KEY_NAME_MAX, "%s.%s", key->section, key->name);
}

fkv_status fkv_key_fail(const fkv_key *key, const fkv_place *place, fkv_err *err, const char *fmt, ...)
{
    char name[FKV_KEY_NAME_MAX], message[sizeof err->message];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(message, sizeof message, fmt, ap);
    va_end(ap);
    fkv_key_full_name(key, name);
    return fkv_fail_at(err, FKV_E_INPUT, place->file, place->line, name, "%s", message);
}

static bool equals(const char *word, const char *text, size_t n)
{
    return strlen(word) == n && memcmp(word, text, n) == 0;
}

int fkv_key_find(const char *section, size_t n_section, const char *name, size_t n_name)
{
    for (size_t i = 0; i < fkv_n_keys; i++) {
        if (equals(fkv_keys[i].section, section, n_section) && equals(fkv_keys[i].name, name, n_name))
            return (int)i;
    }
    return -1;
}

bool fkv_section_exists(const char *section, size_t n)
{
    for (size_t i = 0; i < fkv_n_keys; i++) {
        if (equals(fkv_keys[i].section, section, n)) return true;
    }
    return false;
}

bool fkv_key_looks_like_one(const char *section, const char *line)
{
    size_t n = 0;
    while (isalnum((unsigned char)line[n]) || line[n] == '_') n++;
    size_t end = n;
    while (line[end] == ' ' || line[end] == '\t') end++;
    if (line[end] != '=' && line[end] != ':') return false;
    return fkv_key_find(section, strlen(section), line, n) >= 0;
}

/* Edit distance of two short words (insert, delete, replace). */
static size_t distance(const char *a, const char *b)
{
    enum { MAX = 32 };
    const size_t na = strlen(a), nb = strlen(b);
    size_t row[MAX + 1];
    if (na > MAX || nb > MAX) return MAX;
    for (size_t j = 0; j <= nb; j++) row[j] = j;
    for (size_t i = 1; i <= na; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= nb; j++) {
            const size_t replace = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            row[j] = row[j] < row[j - 1] ? row[j] + 1 : row[j - 1] + 1;
            if (replace < row[j]) row[j] = replace;
        }
    }
    return row[nb];
}

const char *fkv_key_nearest(const char *section, const char *word)
{
    const char *best = NULL;
    size_t least = 4; /* farther words are no typing mistakes */
    for (size_t i = 0; i < fkv_n_keys; i++) {
        if (section && strcmp(fkv_keys[i].section, section) != 0) continue;
        const char *known = section ? fkv_keys[i].name : fkv_keys[i].section;
        const size_t d = distance(known, word);
        if (d < least && d < strlen(known)) {
            least = d;
            best = known;
        }
    }
    return best;
}
