/* fairkv-batch report: the page of runner/report.h, into the output folder or elsewhere. Owns nothing beyond
 * a call. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runner/base/file.h"
#include "runner/commands.h"
#include "runner/report.h"

static const char usage[] =
    "usage: fairkv-batch report OUTPUT_DIR [-o FILE|-]\n"
    "\n"
    "Writes report.html into the output folder: one page about all its parts and runs, that holds all it\n"
    "shows. run writes it too, at its end. Takes no lease: a run at work is not held up.\n"
    "\n"
    "  -o FILE   writes it there; -: standard output\n"
    "\n"
    "exit codes: 0 the page is written; 2 there is no output of ours; else as run's\n";

typedef struct options {
    const char *folder, *file;
    bool help;
} options;

static fkv_status read_options(int argc, char **argv, options *o, fkv_err *err)
{
    int first;
    const fkv_status st =
        fkv_command_file_option("report", usage, argc, argv, &o->file, &o->help, &first, err);
    if (st || o->help) return st;
    if (argc - first != 1)
        return fkv_fail(err, FKV_E_INPUT, "report: give one OUTPUT_DIR; see fairkv-batch help report");
    o->folder = argv[first];
    return FKV_OK;
}

/* A regular file is replaced; a pipe or a device is written to. */
static fkv_status write_file(const char *path, const fkv_buf *page, fkv_err *err)
{
    struct stat sb;
    if (stat(path, &sb) || S_ISREG(sb.st_mode)) return fkv_file_replace(path, page->data, page->len, err);
    const int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return fkv_fail_open(err, path);
    fkv_status st = fkv_write_all(fd, page->data, page->len, path, err);
    if (close(fd) && !st) st = fkv_fail_errno(err, path, "close");
    return st;
}

static fkv_status make(const options *o, fkv_err *err)
{
    fkv_markup page = {.err = err};
    if (!o->file) return fkv_report_save(o->folder, FKV_REPORT_WHOLE, err);
    fkv_status st = fkv_report_make(o->folder, FKV_REPORT_WHOLE, &page);
    if (!st && !strcmp(o->file, "-"))
        fwrite(page.buf.data, 1, page.buf.len, stdout);
    else if (!st)
        st = write_file(o->file, &page.buf, err);
    fkv_markup_free(&page);
    return st;
}

int fkv_cmd_report(int argc, char **argv)
{
    fkv_err err = {0};
    options o = {0};
    fkv_status st = read_options(argc, argv, &o, &err);
    if (!st && o.help)
        fputs(usage, stdout);
    else if (!st)
        st = make(&o, &err);
    return fkv_command_end(st, &err);
}
