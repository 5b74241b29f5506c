/* Names in an output folder: see folder_names.h. */
#include "jobs/folder_names.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "jobs/lease.h"
#include "jobs/report_file.h"
#include "jobs/shard.h"

/* Reads a decimal number without sign; NULL if there is none or it is too large. */
static const char *read_number(const char *p, int64_t *out)
{
    int64_t v = 0;
    if (*p < '0' || *p > '9') return NULL;
    for (; *p >= '0' && *p <= '9'; p++) {
        if (__builtin_mul_overflow(v, 10, &v) || __builtin_add_overflow(v, *p - '0', &v)) return NULL;
    }
    *out = v;
    return p;
}

bool fkv_name_is_part(const char *name, const char *stem, const char *suffix, int64_t *part, int64_t *n_parts)
{
    const size_t n_stem = strlen(stem);
    if (strncmp(name, stem, n_stem) != 0) return false;
    const char *p = name + n_stem;
    *part = 0;
    *n_parts = 1;
    if (*p == '-') {
        if (!strncmp(p, "-auto", 5)) {
            *n_parts = 0;
            return (p = read_number(p + 5, part)) && strcmp(p, suffix) == 0;
        }
        if (!(p = read_number(p + 1, part)) || strncmp(p, "of", 2) != 0) return false;
        if (!(p = read_number(p + 2, n_parts)) || *n_parts < 2 || *part >= *n_parts) return false;
    }
    return strcmp(p, suffix) == 0;
}

bool fkv_name_is_shard(const char *name, const char *suffix, int64_t *index)
{
    char want[FKV_SHARD_NAME_SIZE];
    if (strncmp(name, "shard-", 6) != 0 || !read_number(name + 6, index)) return false;
    fkv_shard_name(*index, want);
    const char *base = strrchr(want, '/') + 1;
    const size_t n = strlen(base);
    return strncmp(name, base, n) == 0 && strcmp(name + n, suffix) == 0;
}

bool fkv_name_is_unfinished_shard(const char *name, int64_t *number)
{
    int64_t index;
    const char *suffix = strchr(name, '.'), *rest = suffix ? strstr(suffix, ".auto") : NULL;
    char plain[FKV_SHARD_NAME_SIZE];
    *number = -1;
    if (fkv_name_is_shard(name, ".tmp", &index)) return true;
    if (!rest || (size_t)(rest - name) >= sizeof plain) return false;
    memcpy(plain, name, (size_t)(rest - name));
    plain[rest - name] = '\0';
    return fkv_name_is_shard(plain, "", &index) && (rest = read_number(rest + 5, number)) &&
           !strcmp(rest, ".tmp");
}

bool fkv_name_is_claim(const char *name, const char *what, const char *suffix, int64_t *index)
{
    char shard[FKV_SHARD_NAME_SIZE];
    const size_t n = strlen(what);
    if (strncmp(name, what, n) != 0 || name[n] != '-' || strlen(name) >= sizeof shard) return false;
    name += n + 1;
    const size_t digits = strncmp(name, "shard-", 6) ? 0 : 6 + strspn(name + 6, "0123456789");
    if (!digits || strcmp(name + digits, suffix) != 0) return false;
    snprintf(shard, sizeof shard, "%.*s.jsonl.zst", (int)digits, name);
    return fkv_name_is_shard(shard, "", index);
}

bool fkv_name_is_lease(const char *name)
{
    int64_t part, n_parts;
    if (fkv_name_is_claim(name, "lock", "", &part)) return true;
    return !strcmp(name, "lock-job") || !strcmp(name, "lock-profile") || !strcmp(name, "lock-plan") ||
           fkv_name_is_part(name, "lock", "", &part, &n_parts);
}

/* stem and suffix of a file that every part has; or a shared one's name. */
static const struct file {
    const char *stem, *suffix;
} files[] = {{"manifest", ".json"}, {"stats", ".json"}, {"metrics", ".prom"}, {"journal", ""}, {"log", ""}};
static const char *const shared[] = {"job.ini", "profile.json", "plan.json", "report.html"};

static bool is_file(const char *name, const char *tmp)
{
    const size_t n_tmp = strlen(tmp);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char suffix[16] = "";
        int64_t part, n_parts;
        strcat(strcpy(suffix, files[i].suffix), tmp);
        if (fkv_name_is_part(name, files[i].stem, suffix, &part, &n_parts)) return true;
    }
    int64_t index;
    if (fkv_name_is_claim(name, "journal", tmp, &index)) return true;
    for (size_t i = 0; i < sizeof shared / sizeof *shared; i++) {
        const size_t n = strlen(shared[i]);
        if (strncmp(name, shared[i], n) == 0 && strlen(name) == n + n_tmp && !strcmp(name + n, tmp))
            return true;
    }
    return false;
}

bool fkv_name_is_ours(const char *name)
{
    return !strcmp(name, "shards") || is_file(name, "") || is_file(name, ".tmp") || fkv_name_is_lease(name) ||
           fkv_lease_is_leaving(name) || fkv_report_file_is_temporary(name);
}
