/* Processors and memory of this process: see machine.h. */
#include "runner/base/machine.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "runner/base/buf.h"

/* What cgroups leave. */
typedef struct cgroup_limits {
    double processors;    /* by quotas; 0: no limit */
    int64_t memory_bytes; /* of the tightest limit, what is not in use; INT64_MAX: no limit */
} cgroup_limits;

/* ---- files ---- */

/* A file of the kernel's, whole: such files have no size. Empty where it can't be read. */
static void read_text(const char *path, fkv_buf *out)
{
    fkv_err ignored = {0};
    char part[4096];
    size_t n;
    fkv_buf_clear(out);
    FILE *f = fopen(path, "re");
    while (f && (n = fread(part, 1, sizeof part, f)) > 0)
        if (fkv_buf_append(out, part, n, &ignored)) break;
    if (f) fclose(f);
}

/* The text of folder/name in out; "" where there is none. */
static const char *text_of(const char *folder, const char *name, fkv_buf *out)
{
    char *path = NULL;
    fkv_buf_clear(out);
    if (asprintf(&path, "%s/%s", folder, name) < 0) return "";
    read_text(path, out);
    free(path);
    return out->data ? out->data : "";
}

/* A whole number that begins at text; -1: there is none, or the kernel's word for no limit. */
static int64_t number_at(const char *text)
{
    while (*text == ' ' || *text == '\t') text++;
    if (!isdigit((unsigned char)*text)) return -1;
    errno = 0;
    const long long n = strtoll(text, NULL, 10);
    return errno ? -1 : n;
}

/* The number behind the word that begins a line; -1: there is none. */
static int64_t number_behind(const char *text, const char *word)
{
    const size_t n = strlen(word);
    for (const char *line = text; *line;) {
        if (!strncmp(line, word, n) && (line[n] == ' ' || line[n] == '\t' || line[n] == ':'))
            return number_at(line + n + (line[n] == ':'));
        line += strcspn(line, "\n");
        line += *line == '\n';
    }
    return -1;
}

static int64_t number_of(const char *folder, const char *name, fkv_buf *scratch)
{
    return number_at(text_of(folder, name, scratch));
}

/* ---- one folder of a cgroup ---- */

/* How the versions name things. */
typedef struct names {
    const char *limits[2], *usage, *file_pages[2];
} names;

static const names memory_names[] = {
    {{"memory.limit_in_bytes", NULL}, "memory.usage_in_bytes", {"total_inactive_file", "total_active_file"}},
    {{"memory.max", "memory.high"}, "memory.current", {"inactive_file", "active_file"}},
};

static void add_memory(const names *n, const char *folder, fkv_buf *scratch, cgroup_limits *out)
{
    int64_t limit = -1;
    for (int i = 0; i < 2 && n->limits[i]; i++) {
        const int64_t one = number_of(folder, n->limits[i], scratch);
        if (one >= 0 && (limit < 0 || one < limit)) limit = one;
    }
    if (limit < 0 || limit >= (int64_t)1 << 62) return; /* version 1 has no word for no limit */
    int64_t used = number_of(folder, n->usage, scratch);
    /* Pages of files go when memory is short, as in the kernel's MemAvailable: a model's
     * weights that an earlier run has read take nothing from this one. */
    const char *stat = text_of(folder, "memory.stat", scratch);
    for (int i = 0; i < 2; i++) {
        const int64_t pages = number_behind(stat, n->file_pages[i]);
        if (pages > 0) used -= pages;
    }
    if (used < 0) used = 0;
    const int64_t left = limit > used ? limit - used : 0;
    if (left < out->memory_bytes) out->memory_bytes = left;
}

static void add_processors(int64_t quota, int64_t period, cgroup_limits *out)
{
    if (quota <= 0 || period <= 0) return;
    const double n = (double)quota / (double)period;
    if (out->processors == 0 || n < out->processors) out->processors = n;
}

typedef enum kind { V1_MEMORY, V1_CPU, V2 } kind;

static void add_folder(kind k, const char *folder, fkv_buf *scratch, cgroup_limits *out)
{
    if (k != V1_CPU) add_memory(&memory_names[k == V2], folder, scratch, out);
    if (k == V1_CPU) {
        const int64_t quota = number_of(folder, "cpu.cfs_quota_us", scratch);
        add_processors(quota, number_of(folder, "cpu.cfs_period_us", scratch), out);
    } else if (k == V2) { /* "max 100000", or quota and period */
        const char *text = text_of(folder, "cpu.max", scratch);
        const int64_t quota = number_at(text);
        add_processors(quota, number_at(text + strcspn(text, " ")), out);
    }
}

/* ---- which folders ---- */

/* Whether word is in a list that commas separate and that ends with the line or a blank. */
static bool has_word(const char *list, const char *word)
{
    const size_t n = strlen(word);
    for (;;) {
        const size_t len = strcspn(list, ", \n:");
        if (len == n && !strncmp(list, word, n)) return true;
        if (list[len] != ',') return false;
        list += len + 1;
    }
}

/* This process's path in the hierarchy of a controller (v1), or of version 2 (NULL), from
 * lines "number:controllers:path". malloc'd; NULL: it is in none. */
static char *path_in(const char *cgroups, const char *controller)
{
    for (const char *line = cgroups; *line;) {
        const size_t n = strcspn(line, "\n");
        const char *list = memchr(line, ':', n);
        const char *path = list ? memchr(list + 1, ':', n - (size_t)(list + 1 - line)) : NULL;
        if (path && (controller ? has_word(list + 1, controller) : path == list + 1 && line[0] == '0'))
            return strndup(path + 1, n - (size_t)(path + 1 - line));
        line += n;
        line += *line == '\n';
    }
    return NULL;
}

/* Where the process's path lies below a mount that shows the hierarchy from top on; NULL: outside. */
static const char *below(const char *path, const char *top)
{
    const size_t n = strlen(top);
    if (path[0] != '/' || strstr(path, "/..")) return NULL;
    if (!strcmp(top, "/")) return path;
    if (strncmp(path, top, n) != 0 || (path[n] && path[n] != '/')) return NULL;
    return path + n;
}

/* The limits of the process's folder and of all above it, as far as the mount shows them. */
static void add_chain(kind k, const char *root, const char *mount, const char *path, fkv_buf *scratch,
                      cgroup_limits *out)
{
    char *folder = NULL;
    if (asprintf(&folder, "%s%s%s", root, mount, path) < 0) return;
    const size_t shortest = strlen(root) + strlen(mount);
    size_t n = strlen(folder);
    while (n > shortest && folder[n - 1] == '/') folder[--n] = '\0';
    add_folder(k, folder, scratch, out);
    while (n > shortest) {
        while (n > shortest && folder[n - 1] != '/') n--;
        while (n > shortest && folder[n - 1] == '/') n--;
        folder[n] = '\0';
        add_folder(k, folder, scratch, out);
    }
    free(folder);
}

/* A word of a line of mountinfo, cut off in place; blanks in names are written as \040. */
static char *next_word(char **at)
{
    char *word = *at, *to = word;
    const char *p = word;
    for (; *p && *p != ' '; p++) {
        const bool octal = p[0] == '\\' && p[1] >= '0' && p[1] <= '3' && p[2] >= '0' && p[2] <= '7' &&
                           p[3] >= '0' && p[3] <= '7';
        *to++ = octal ? (char)((p[1] - '0') * 64 + (p[2] - '0') * 8 + (p[3] - '0')) : *p;
        if (octal) p += 3;
    }
    *at = word + (p - word) + (*p == ' ');
    *to = '\0';
    return word;
}

/* "36 35 98:0 /top /mount options [tags] - type source options" */
static void add_mount(char *line, const char *root, const char *cgroups, fkv_buf *scratch, cgroup_limits *out)
{
    static const char *const controllers[] = {"memory", "cpu", NULL};
    char *at = strstr(line, " - ");
    if (!at) return;
    *at = '\0';
    at += 3;
    const char *type = next_word(&at);
    next_word(&at);
    const char *options = next_word(&at);
    const bool v2 = !strcmp(type, "cgroup2");
    if (!v2 && strcmp(type, "cgroup") != 0) return;
    for (int i = 0; i < 3; i++) next_word(&line);
    const char *top = next_word(&line), *mount = next_word(&line);
    for (int k = v2 ? V2 : V1_MEMORY; k <= (v2 ? V2 : V1_CPU); k++) {
        if (!v2 && !has_word(options, controllers[k])) continue;
        char *path = path_in(cgroups, controllers[k]);
        const char *rest = path ? below(path, top) : NULL;
        if (rest) add_chain((kind)k, root, mount, rest, scratch, out);
        free(path);
    }
}

/* What the cgroups leave, read below the folder root. */
static cgroup_limits cgroups_of(const char *root)
{
    cgroup_limits out = {0, INT64_MAX};
    fkv_buf cgroups = {0}, mounts = {0}, scratch = {0};
    text_of(root, "proc/self/cgroup", &cgroups);
    text_of(root, "proc/self/mountinfo", &mounts);
    char *line = mounts.data;
    while (cgroups.data && line && *line) {
        char *end = strchr(line, '\n');
        if (end) *end = '\0';
        add_mount(line, root, cgroups.data, &scratch, &out);
        line = end ? end + 1 : NULL;
    }
    fkv_buf_free(&scratch);
    fkv_buf_free(&mounts);
    fkv_buf_free(&cgroups);
    return out;
}

/* ---- all of it ---- */

int fkv_machine_processors_of(const char *root, int affinity)
{
    const double quota = cgroups_of(root).processors;
    int n = affinity > 0 ? affinity : 1;
    if (quota > 0 && ceil(quota - 1e-6) < n) n = (int)ceil(quota - 1e-6);
    return n > 0 ? n : 1;
}

int64_t fkv_machine_memory_of(const char *root)
{
    fkv_buf text = {0};
    const int64_t kib = number_behind(text_of(root, "proc/meminfo", &text), "MemAvailable");
    const int64_t left = cgroups_of(root).memory_bytes;
    int64_t bytes = (int64_t)1 << 30;
    if (kib >= 0 && kib <= INT64_MAX / 1024) bytes = kib * 1024;
    fkv_buf_free(&text);
    return left < bytes ? left : bytes;
}

/* Processors that the scheduler lets this thread run on. */
static int affinity_processors(void)
{
    for (int n = 1024; n <= 1 << 20; n *= 2) {
        cpu_set_t *set = CPU_ALLOC((size_t)n);
        const size_t size = CPU_ALLOC_SIZE((size_t)n);
        if (!set) break;
        const bool known = sched_getaffinity(0, size, set) == 0;
        const bool larger = !known && errno == EINVAL;
        const int count = known ? CPU_COUNT_S(size, set) : 0;
        CPU_FREE(set);
        if (count > 0) return count;
        if (!larger) break;
    }
    const long all = sysconf(_SC_NPROCESSORS_ONLN);
    return all > 0 ? (int)all : 1;
}

int fkv_machine_processors(void)
{
    return fkv_machine_processors_of("", affinity_processors());
}

int64_t fkv_machine_memory(void)
{
    static const struct {
        int resource;
        const char *used; /* in /proc/self/status */
    } limits[] = {{RLIMIT_AS, "VmSize"}, {RLIMIT_DATA, "VmData"}};
    int64_t bytes = fkv_machine_memory_of("");
    fkv_buf text = {0};
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        struct rlimit limit;
        if (getrlimit(limits[i].resource, &limit) || limit.rlim_cur == RLIM_INFINITY) continue;
        const int64_t kib = number_behind(text_of("", "proc/self/status", &text), limits[i].used);
        const int64_t used = kib > 0 && kib <= INT64_MAX / 1024 ? kib * 1024 : 0;
        const int64_t most = limit.rlim_cur < INT64_MAX ? (int64_t)limit.rlim_cur : INT64_MAX;
        const int64_t left = most > used ? most - used : 0;
        if (left < bytes) bytes = left;
    }
    fkv_buf_free(&text);
    return bytes;
}
