/* Any bytes as model.safetensors, or, when they start with '#', what follows
 * as the index of a folder that holds one good file, "good". Every tensor that
 * is accepted is read to its last byte, and so are the scales of FP8 matrices: the length of the header
 * says what shapes they may have. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/model/quant.h"
#include "engine/model/safetensors.h"
#include "runner/base/json.h"
#include "tests/fuzz/folder.h"

#define FUZZ_OWN_MUTATOR
#include "tests/fuzz/json_mutator.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *single_path, *index_path, *good_path;
static const char good_header[] = "{\"a\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[0,4]}}";

static void set_up(void)
{
    char good[128] = {(char)(sizeof good_header - 1)};
    make_folder();
    single_path = in_folder("model.safetensors");
    index_path = in_folder("model.safetensors.index.json");
    memcpy(good + 8, good_header, sizeof good_header);
    good_path = in_folder("good");
    put_file(good_path, good, 8 + sizeof good_header - 1 + 4);
}

/* The bytes of the header that the file states, or what is there. */
static size_t header_bytes(const uint8_t *data, size_t size)
{
    size_t n = 0;
    for (int i = 7; i >= 0; i--) n = n << 8 | data[i];
    return n < size - 8 ? n : size - 8;
}

/* Mutates the header and its length with it, or the index. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed)
{
    if (size < 8 || max < 64 || seed % 16 == 0) return LLVMFuzzerMutate(data, size, max);
    if (data[0] == '#') return 1 + mutate_json(data + 1, size - 1, max - 1, seed);
    const size_t n = header_bytes(data, size), n_tail = size - 8 - n;
    uint8_t *tail = malloc(n_tail + 1);
    if (!tail) return size;
    memcpy(tail, data + 8 + n, n_tail);
    const size_t now = mutate_json(data + 8, n, max - 8 - n_tail, seed);
    for (int i = 0; i < 8; i++) data[i] = (uint8_t)((uint64_t)now >> 8 * i);
    memcpy(data + 8 + now, tail, n_tail);
    free(tail);
    return 8 + now + n_tail;
}

/* The last scale that a matrix needs is there. */
static void read_scales(const fkv_safetensors *s, uint8_t forms, fkv_st_tensor *t)
{
    static volatile uint8_t sink;
    const fkv_quant q = {
        .grains = (uint8_t)(1 + forms % 7), .inverse = forms & 8, .block_rows = 2, .block_cols = 3};
    fkv_err err = {0};
    if (fkv_quant_find_scales(&q, s, t, &err)) {
        if (!err.message[0] || !err.key[0]) abort();
        return;
    }
    const fkv_st_scales *by = &t->scales;
    if (t->dtype != FKV_ST_F8_E4M3 || !t->n_bytes) return;
    if (!by->data) abort();
    const int64_t last = (t->shape[0] - 1) / by->block_rows * by->stride + (t->shape[1] - 1) / by->block_cols;
    for (int i = 0; i < 2; i++)
        sink = ((const uint8_t *)by->data)[last * (by->dtype == FKV_ST_F32 ? 4 : 2) + i];
    (void)sink;
}

/* Asks for every tensor that the header names, with the shape that it states. */
static void read_all(const fkv_safetensors *s, const uint8_t *data, size_t size)
{
    static volatile uint8_t sink;
    const size_t n = header_bytes(data, size);
    json_t *header = json_loadb((const char *)data + 8, n, 0, NULL), *o;
    const char *name;
    json_object_foreach(header, name, o)
    {
        fkv_st_tensor t;
        fkv_err err = {0};
        int64_t shape[8] = {0};
        const json_t *dims = json_object_get(o, "shape");
        const int n_dims = (int)json_array_size(dims);
        for (int i = 0; i < n_dims && i < 8; i++)
            shape[i] = json_integer_value(json_array_get(dims, (size_t)i));
        if (fkv_safetensors_get(s, name, shape, n_dims, &t, &err)) continue;
        for (size_t i = 0; i < t.n_bytes; i++) sink = ((const uint8_t *)t.data)[i];
        if (strcmp(t.name, name) != 0) abort();
        read_scales(s, data[0], &t);
    }
    (void)sink;
    json_decref(header);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!single_path) set_up();
    const int is_index = size && data[0] == '#';
    unlink(index_path);
    unlink(single_path); /* or there would be two sources of weights */
    put_file(is_index ? index_path : single_path, data + is_index, size - (size_t)is_index);

    fkv_safetensors *s;
    fkv_err err = {0};
    if (fkv_safetensors_open(fuzz_folder, &s, &err)) {
        if (s || !err.message[0]) abort();
        return 0;
    }
    if (!is_index) read_all(s, data, size);
    fkv_safetensors_close(s);
    return 0;
}
