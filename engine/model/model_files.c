/* What a model folder holds: see model_files.h. */
#include "engine/model/model_files.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "runner/base/file.h"

#define SINGLE  "model.safetensors"
#define INDEX   "model.safetensors.index.json"
#define ADAPTER "adapter_config.json"

/* With transformers and, for an adapter, peft. %1$s: the folder. */
#define CONVERT(how)                                                                                         \
    "python3 -c 'from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; d, to = \"%1$s\", " \
    "\"NEW_FOLDER\"; " how ".save_pretrained(to); T.from_pretrained(d).save_pretrained(to)'"

/* What may stand in place of safetensors, the first that applies being the reason. */
static const struct format {
    const char *begin, *end; /* of the file's name */
    bool layout;             /* such a folder has no config.json, or not the model's */
    const char *what;        /* %1$s: the folder, %2$s: the file */
} formats[] = {
    {ADAPTER, "", true,
     "is of an adapter (LoRA), which is not supported: merge it into its model, python3 -c 'from peft import "
     "AutoPeftModelForCausalLM as M; M.from_pretrained(\"%1$s\").merge_and_unload().save_pretrained("
     "\"NEW_FOLDER\")', and copy tokenizer.json"},
    {"pytorch_model", ".bin", false,
     "is not read, being a Python program: make safetensors of it, " CONVERT(
         "M.from_pretrained(d, dtype=\"auto\")")},
    {"consolidated", ".safetensors", true,
     "is Mistral's own format, which is not supported: take the same model's HF files (config.json, "
     "model*.safetensors, tokenizer.json)"},
    {"consolidated", ".pth", true,
     "is Meta's own format, which is not supported: take the same model's HF files (config.json, "
     "model*.safetensors, tokenizer.json)"},
    {"", ".gguf", true,
     "is GGUF, which is not supported: take the model's original folder, or convert it, python3 -c 'from "
     "transformers import AutoModelForCausalLM as M, AutoTokenizer as T; a = dict("
     "pretrained_model_name_or_path=\"%1$s\", gguf_file=\"%2$s\"); M.from_pretrained(**a).save_pretrained("
     "\"NEW_FOLDER\"); T.from_pretrained(**a).save_pretrained(\"NEW_FOLDER\")'"},
    {"", ".safetensors", false,
     "is neither " SINGLE " nor named by a " INDEX ": HF transformers does not take it either"},
    {"tf_model", ".h5", false,
     "is TensorFlow's format, which is not supported: take the model's safetensors"},
    {"flax_model", ".msgpack", false,
     "is Flax's format, which is not supported: take the model's safetensors"},
};
enum { N_FORMATS = sizeof formats / sizeof *formats, NAME = 256 };

struct listing {
    char shard[NAME];            /* the first by name, "" for none; so all */
    char found[N_FORMATS][NAME]; /* by format */
    bool snapshots, refs;        /* as in HF's cache */
};

static bool has_ends(const char *name, const char *begin, const char *end)
{
    const size_t n = strlen(name), n_begin = strlen(begin), n_end = strlen(end);
    return n >= n_begin + n_end && !strncmp(name, begin, n_begin) && !strcmp(name + n - n_end, end);
}

/* PREFIX-00001-of-00003.safetensors: where its numbers begin, or 0. */
static size_t shard_numbers(const char *name)
{
    static const char like[] = "-00000-of-00000.safetensors";
    const size_t n = strlen(name), n_like = sizeof like - 1;
    if (n < n_like + 1) return 0;
    for (size_t i = 0; i < n_like; i++) {
        const char c = name[n - n_like + i];
        if (like[i] == '0' ? c < '0' || c > '9' : c != like[i]) return 0;
    }
    return n - n_like + 1;
}

/* Mistral's own weights stand beside HF's in its folders. */
static bool is_weights(const char *name)
{
    return has_ends(name, "", ".safetensors") && !has_ends(name, "consolidated", ".safetensors");
}

static void keep_first(char *first, const char *name)
{
    if (strlen(name) < NAME && (!*first || strcmp(name, first) < 0)) strcpy(first, name);
}

/* Calls fn with the names in a folder, hidden ones left out. One that can't be read is for those to tell who
 * open its files, unless the system failed. */
static fkv_status each_name(const char *dir, void (*fn)(void *ctx, const char *name), void *ctx, fkv_err *err)
{
    errno = 0;
    DIR *d = opendir(dir);
    if (!d) return fkv_errno_is_system(errno) ? fkv_fail_open(err, dir) : FKV_OK;
    for (const struct dirent *e; errno = 0, (e = readdir(d));)
        if (e->d_name[0] != '.') fn(ctx, e->d_name);
    const int failed = errno;
    closedir(d);
    errno = failed;
    return failed ? fkv_fail_errno(err, dir, "readdir") : FKV_OK;
}

static void take(void *ctx, const char *name)
{
    struct listing *out = ctx;
    size_t k = 0;
    if (!strcmp(name, "snapshots")) out->snapshots = true;
    if (!strcmp(name, "refs")) out->refs = true;
    if (is_weights(name) && shard_numbers(name)) keep_first(out->shard, name);
    while (k < N_FORMATS && !has_ends(name, formats[k].begin, formats[k].end)) k++;
    if (k < N_FORMATS) keep_first(out->found[k], name);
}

/* Whether dir holds it. True without memory, so that whoever opens it tells. */
static bool holds(const char *dir, const char *name)
{
    char *path = fkv_path_join(dir, name);
    const bool there = !path || fkv_file_exists(path);
    free(path);
    return there;
}

static fkv_status refuse(const char *dir, const struct format *f, const char *file, fkv_err *err)
{
    char what[700];
    char *path = fkv_path_join(dir, file);
    if (!path) return fkv_fail_memory(err);
    snprintf(what, sizeof what, f->what, dir, file);
    const fkv_status st = fkv_fail_at(err, FKV_E_INPUT, path, 0, NULL, "%s", what);
    free(path);
    return st;
}

static fkv_status refuse_shards(const char *dir, const char *shard, fkv_err *err)
{
    const size_t at = shard_numbers(shard);
    const int n = atoi(shard + at + strlen("00000-of-"));
    char name[NAME], missing[NAME + 32] = "";
    for (int i = 1; i <= n && !*missing; i++) {
        snprintf(name, sizeof name, "%.*s%05d%s", (int)at, shard, i, shard + at + strlen("00000"));
        if (!holds(dir, name)) snprintf(missing, sizeof missing, ", and so is %s", name);
    }
    return fkv_fail_at(err, FKV_E_INPUT, dir, 0, NULL,
                       "holds %s, but " INDEX ", which says what is in which shard, is missing%s: copy the "
                       "whole folder",
                       shard, missing);
}

fkv_status fkv_model_files_check(const char *dir, fkv_err *err)
{
    struct listing files = {0};
    if (holds(dir, "config.json")) return FKV_OK;
    if (has_ends(dir, "", ".gguf") && fkv_file_exists(dir))
        return fkv_fail_at(err, FKV_E_INPUT, dir, 0, NULL,
                           "is GGUF, which is not supported: take the folder of the model in HF's layout "
                           "(config.json, *.safetensors, tokenizer.json)");
    const fkv_status st = each_name(dir, take, &files, err);
    if (st) return st;
    if (files.snapshots && files.refs)
        return fkv_fail_at(err, FKV_E_INPUT, dir, 0, NULL,
                           "is a folder of HF's cache: the model is the folder below snapshots/ in it");
    for (size_t k = 0; k < N_FORMATS; k++)
        if (formats[k].layout && *files.found[k]) return refuse(dir, &formats[k], files.found[k], err);
    return FKV_OK;
}

fkv_status fkv_model_files_weights(const char *dir, char **path, bool *is_index, fkv_err *err)
{
    struct listing files = {0};
    *is_index = holds(dir, INDEX);
    *path = NULL;
    if (!*is_index && !holds(dir, SINGLE)) {
        const fkv_status st = each_name(dir, take, &files, err);
        if (st) return st;
        if (*files.shard) return refuse_shards(dir, files.shard, err);
        for (size_t k = 0; k < N_FORMATS; k++)
            if (*files.found[k]) return refuse(dir, &formats[k], files.found[k], err);
    }
    *path = fkv_path_join(dir, *is_index ? INDEX : SINGLE);
    return *path ? FKV_OK : fkv_fail_memory(err);
}

static int by_text(const void *key, const void *name)
{
    return strcmp(key, *(const char *const *)name);
}

/* Those that are a source of weights, and the first file beside them that is one. */
struct sources {
    const char *const *names;
    size_t n;
    char other[NAME];
    bool adapter;
};

static void take_other(void *ctx, const char *name)
{
    struct sources *s = ctx;
    if (!strcmp(name, ADAPTER)) s->adapter = true;
    if (!is_weights(name) || bsearch(name, s->names, s->n, sizeof *s->names, by_text)) return;
    if (!strcmp(name, SINGLE)) strcpy(s->other, name); /* before all others: HF takes it */
    if (strcmp(s->other, SINGLE) != 0) keep_first(s->other, name);
}

fkv_status fkv_model_files_alone(const char *dir, const char *source, const char *const *names, size_t n,
                                 fkv_err *err)
{
    struct sources s = {.names = names, .n = n};
    char *other = s.other;
    const fkv_status st = each_name(dir, take_other, &s, err);
    if (st) return st;
    /* What an index names and is not there may well lie there under another name. */
    for (size_t i = 0; i < n && *other && strcmp(other, SINGLE) != 0; i++)
        if (!holds(dir, names[i])) *other = '\0';
    if (!*other && s.adapter)
        return fkv_fail_at(err, FKV_E_INPUT, dir, 0, NULL,
                           "holds " ADAPTER
                           " beside %s: HF transformers would change the model by the adapter "
                           "where peft is installed; take the adapter away, or merge it",
                           source);
    if (!*other) return FKV_OK;
    return fkv_fail_at(err, FKV_E_INPUT, dir, 0, NULL,
                       "holds two sources of weights, %s and %s%s: leave the one that is meant in it", source,
                       other, strcmp(source, INDEX) ? "" : ", which the index does not name");
}
