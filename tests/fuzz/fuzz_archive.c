/* Archives: one byte for the file's name and the members' pattern, then its bytes. */
#include <jansson.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "jobs/archive.h"
#include "runner/base/log.h"

enum { RECORD_MAX = 512, LINES_MAX = 20000, WINDOW_MAX = 1 << 20 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
const char *__asan_default_options(void);

/* A damaged archive may ask for any amount of memory; the library looks at what it gets. */
const char *__asan_default_options(void)
{
    return "allocator_may_return_null=1";
}

static bool see_first(void *ctx, const fkv_line *line)
{
    bool *text = ctx;
    *text = line->text != NULL;
    return true;
}

static void end_file(void *ctx, const fkv_look_end *end)
{
    (void)ctx;
    json_t *name = json_string(end->member);
    if (!name || !(end->share > 0 && end->share <= 1) || end->n_members < 0) abort();
    json_decref(name);
}

/* The first record that a look sees is the first that reading gives. */
static void look(const fkv_job *job, bool first_is_text)
{
    bool text = false;
    fkv_errs errs = {0};
    const fkv_look l = {&text, (int64_t)1 << 40, see_first, end_file, NULL};
    fkv_input_look(job, &l, &errs);
    if (first_is_text && !text && !errs.n) abort();
    fkv_errs_free(&errs);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const names[] = {"x",    "x.jsonl",  "x.tar",      "x.zip",
                                        "x.7z", "x.tar.gz", "x.json.zst", "x.dat.xz"};
    static char *patterns[] = {(char *)"*", (char *)"*.jsonl", (char *)"?*[!a-c]/[[-^z]*", (char *)"d*a\\*"};
    static int fd = -1;
    char path[64];
    if (size < 1 || size > 1 << 20) return 0;
    if (fd < 0) fd = memfd_create("archive", 0);
    if (fd < 0 || ftruncate(fd, 0) || pwrite(fd, data + 1, size - 1, 0) < 0) abort();
    fkv_log_set_stderr(false);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    fkv_input_file file = {.path = path, .name = (char *)names[data[0] % 8]};
    fkv_job job = {0};
    job.input.files = &file;
    job.input.n_files = 1;
    job.input.members = (fkv_words){&patterns[data[0] / 8 % 4], 1};
    job.input.max_record_bytes = RECORD_MAX;
    job.input.max_window = WINDOW_MAX;
    job.job.limit = LINES_MAX;
    fkv_reader *reader = NULL;
    fkv_errs errs = {0};
    fkv_err err = {0};
    if (!fkv_reader_open(&job, &reader, &errs)) {
        fkv_line line;
        int64_t n = 0;
        bool first_is_text = false;
        while (!fkv_reader_next(reader, &line, &err)) {
            if (line.ordinal != n++ || (line.text == NULL) == (line.error_code == NULL)) abort();
            if (line.text && (line.n == 0 || line.n > RECORD_MAX ||
                              (memchr(line.text, '\n', line.n) && !strcasestr(line.member, ".json"))))
                abort();
            if (line.line < 1) abort();
            if (n == 1) first_is_text = line.text != NULL;
            json_t *name = json_string(line.member); /* NULL unless it is UTF-8 */
            if (!name) abort();
            json_decref(name);
        }
        if (err.status == FKV_E_INPUT) abort();
        look(&job, first_is_text);
    }
    fkv_reader_close(reader);
    fkv_errs_free(&errs);
    return 0;
}
