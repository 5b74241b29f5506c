/* Any bytes as config.json; what follows a NUL is generation_config.json. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/config.h"
#include "runner/base/file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char dir[] = "/tmp/fkv-fuzz-config-XXXXXX";
static char config_path[64], generation_path[64];

static void remove_dir(void)
{
    unlink(config_path);
    unlink(generation_path);
    rmdir(dir);
}

static void put(const char *path, const uint8_t *data, size_t size)
{
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, size, f) != size || fclose(f)) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int ready;
    if (!ready++) {
        if (!mkdtemp(dir)) abort();
        snprintf(config_path, sizeof config_path, "%s/config.json", dir);
        snprintf(generation_path, sizeof generation_path, "%s/generation_config.json", dir);
        atexit(remove_dir);
    }
    const uint8_t *nul = size ? memchr(data, 0, size) : NULL;
    const size_t n = nul ? (size_t)(nul - data) : size;
    put(config_path, data, n);
    unlink(generation_path);
    if (nul) put(generation_path, nul + 1, size - n - 1);

    fkv_config c;
    fkv_err err = {0};
    if (fkv_config_read(dir, &c, &err)) {
        if (!err.message[0]) abort();
        return 0;
    }
    /* What is accepted is consistent. */
    if (c.n_layers < 1 || c.n_kv_heads < 1 || c.group < 1 || c.group * c.n_kv_heads != c.n_heads) abort();
    if (c.head_dim < 8 || c.head_dim > 256 || c.head_dim % 8 || c.n_eos > FKV_MAX_EOS) abort();
    for (int i = 0; i < c.n_eos; i++)
        if (c.eos[i] < 0 || c.eos[i] >= c.vocab) abort();
    float f[128];
    fkv_config_rope_frequencies(&c, f);
    for (int i = 0; i < c.head_dim / 2; i++)
        if (!(f[i] >= 0 && f[i] <= 1)) abort();
    return 0;
}
