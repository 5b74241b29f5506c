/* Runs a fuzz target over every file of the folders and files named. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "runner/base/file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int n_run;

static int replay(const char *path)
{
    fkv_err err = {0};
    fkv_buf bytes = {0};
    if (fkv_file_read(path, (size_t)1 << 26, &bytes, &err)) {
        fprintf(stderr, "%s: %s\n", path, err.message);
        return 1;
    }
    LLVMFuzzerTestOneInput((const uint8_t *)bytes.data, bytes.len);
    fkv_buf_free(&bytes);
    n_run++;
    return 0;
}

int main(int argc, char **argv)
{
    int bad = 0;
    for (int i = 1; i < argc; i++) {
        DIR *dir = opendir(argv[i]);
        if (!dir) {
            bad += replay(argv[i]);
            continue;
        }
        for (struct dirent *e; (e = readdir(dir));) {
            if (e->d_name[0] == '.') continue;
            char path[4096];
            snprintf(path, sizeof path, "%s/%s", argv[i], e->d_name);
            bad += replay(path);
        }
        closedir(dir);
    }
    printf("%d inputs\n", n_run);
    return bad || n_run == 0;
}
