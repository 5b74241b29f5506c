/* Any bytes as config.json; what follows a NUL is generation_config.json. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/model/config.h"
#include "engine/model/generation.h"
#include "runner/base/file.h"
#include "tests/fuzz/folder.h"

#define FUZZ_OWN_MUTATOR
#include "tests/fuzz/json_mutator.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *config_path, *generation_path;

/* Mutates config.json, or generation_config.json behind the NUL. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed)
{
    const uint8_t *nul = size ? memchr(data, 0, size) : NULL;
    const size_t n = nul ? (size_t)(nul - data) : size;
    if (seed % 16 == 0) return LLVMFuzzerMutate(data, size, max);
    if (nul && seed % 4 == 0) return n + 1 + mutate_json(data + n + 1, size - n - 1, max - n - 1, seed);
    if (!nul) return mutate_json(data, size, max, seed);
    uint8_t *tail = malloc(size - n);
    if (!tail) return size;
    memcpy(tail, data + n, size - n);
    const size_t now = mutate_json(data, n, max - (size - n), seed);
    memcpy(data + now, tail, size - n);
    free(tail);
    return now + size - n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!config_path) {
        make_folder();
        config_path = in_folder("config.json");
        generation_path = in_folder("generation_config.json");
    }
    const uint8_t *nul = size ? memchr(data, 0, size) : NULL;
    const size_t n = nul ? (size_t)(nul - data) : size;
    put_file(config_path, data, n);
    unlink(generation_path);
    if (nul) put_file(generation_path, nul + 1, size - n - 1);

    fkv_config c;
    fkv_err err = {0};
    if (fkv_config_read(fuzz_folder, &c, &err)) {
        if (!err.message[0]) abort();
        return 0;
    }
    /* What is accepted is consistent. */
    if (c.n_layers < 1 || c.n_kv_heads < 1 || c.group < 1 || c.group * c.n_kv_heads != c.n_heads) abort();
    if (c.head_dim < 8 || c.head_dim > 256 || c.head_dim % 8 || c.n_eos > FKV_MAX_EOS) abort();
    for (int i = 0; i < c.n_eos; i++)
        if (c.eos[i] < 0 || c.eos[i] >= c.vocab) abort();
    static fkv_generation g;
    if (fkv_generation_read(fuzz_folder, c.vocab, &g, &err)) {
        if (!err.message[0]) abort();
    } else {
        if (!(g.repetition_penalty > 0) || g.min_new < 0 || g.n_suppressed > FKV_MAX_SUPPRESSED) abort();
        for (int i = 0; i < g.n_suppressed; i++)
            if (g.suppressed[i] < 0 || g.suppressed[i] >= c.vocab) abort();
        if (!memchr(g.untaken, 0, sizeof g.untaken)) abort();
    }
    float f[256], scale[256];
    fkv_config_rope_frequencies(&c, f, scale);
    for (int i = 0; i < fkv_config_n_ropes(&c) * c.head_dim / 2; i++)
        if (!(f[i] >= 0 && f[i] <= (c.rope.type == FKV_ROPE_LONGROPE ? 1e6f : 1) && scale[i] > 0)) abort();
    return 0;
}
