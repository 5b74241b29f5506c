/* The folder of a target's files: in memory where the machine has /dev/shm, since
 * a target writes thousands of files a second. The program's end removes what
 * stands in it. */
#ifndef FKV_FUZZ_FOLDER_H
#define FKV_FUZZ_FOLDER_H

#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char fuzz_folder[48]; /* "" until make_folder() */

static void remove_folder(void)
{
    DIR *dir = opendir(fuzz_folder);
    for (const struct dirent *e; dir && (e = readdir(dir));) unlinkat(dirfd(dir), e->d_name, 0);
    if (dir) closedir(dir);
    rmdir(fuzz_folder);
}

/* Makes the folder in the first call. */
static void make_folder(void)
{
    if (fuzz_folder[0]) return;
    strcpy(fuzz_folder, "/dev/shm/fkv-fuzz-XXXXXX");
    if (!mkdtemp(fuzz_folder)) {
        strcpy(fuzz_folder, "/tmp/fkv-fuzz-XXXXXX");
        if (!mkdtemp(fuzz_folder)) abort();
    }
    atexit(remove_folder);
}

/* The path of a file in the folder, valid until the program ends; a target has a few. */
static const char *in_folder(const char *name)
{
    static char paths[8][96];
    static size_t n;
    if (n == 8) abort();
    char *path = paths[n++];
    if ((size_t)snprintf(path, sizeof paths[0], "%s/%s", fuzz_folder, name) >= sizeof paths[0]) abort();
    return path;
}

static void put_file(const char *path, const void *bytes, size_t n)
{
    FILE *f = fopen(path, "wb");
    if (!f || (n && fwrite(bytes, 1, n, f) != n) || fclose(f)) abort();
}

#endif
