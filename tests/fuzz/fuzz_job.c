/* Job files: an override, a NUL, the file's text. Whatever parses must be
 * written to an INI file that parses to the same; of what does not, the rest is read. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "jobs/job.h"
#include "runner/base/file.h"
#include "tests/fuzz/folder.h"

static const char *job_path, *again_path, *archive_path;

static void set_up(void)
{
    make_folder();
    job_path = in_folder("job.ini");
    again_path = in_folder("again.ini");
    archive_path = in_folder("a ;[$].jsonl");
    put_file(archive_path, "", 0);
    setenv("FKV_FUZZ", "a b", 1);
}

/* Patterns that would walk over the machine's folders. */
static bool walks(const uint8_t *data, size_t size)
{
    return memchr(data, '/', size) && (memchr(data, '*', size) || memchr(data, '?', size) ||
                                       memchr(data, '[', size) != memrchr(data, '[', size));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char override[256] = "";
    const char *overrides[] = {override};
    fkv_job *job = NULL, *again = NULL;
    fkv_errs errs = {0};
    fkv_err err = {0};
    fkv_buf ini = {0}, ini2 = {0}, identity = {0};
    if (!job_path) set_up();
    const uint8_t *nul = memchr(data, 0, size);
    if (nul && (size_t)(nul - data) < sizeof override) {
        memcpy(override, data, (size_t)(nul - data));
        size -= (size_t)(nul - data) + 1;
        data = nul + 1;
    }
    if (walks(data, size) || walks((const uint8_t *) override, strlen(override))) return 0;
    put_file(job_path, data, size);
    const fkv_status st = fkv_job_read(job_path, overrides, override[0] != '\0', &job, &errs);
    if ((st == FKV_OK) != (errs.n == 0) || (!st && !job)) abort();
    if (st) goto out;
    fkv_job_write_identity(job, &identity, &err);
    err = (fkv_err){0};
    if (fkv_job_write_ini(job, &ini, &err)) goto out;
    put_file(again_path, ini.data, ini.len);
    if (fkv_job_parse(again_path, NULL, 0, &again, &errs)) {
        char message[2048];
        fkv_err_format(&errs.at[0], message, sizeof message);
        fprintf(stderr, "%s\n%s\n", message, ini.data);
        abort();
    }
    if (fkv_job_write_ini(again, &ini2, &err) || strcmp(ini.data, ini2.data) != 0) abort();
out:
    fkv_buf_free(&identity);
    fkv_buf_free(&ini2);
    fkv_buf_free(&ini);
    fkv_errs_free(&errs);
    fkv_job_free(again);
    fkv_job_free(job);
    return 0;
}
