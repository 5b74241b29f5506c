/* Any bytes as model.safetensors, or, when they start with '#', what follows
 * as the index of a folder that holds one good file, "good". Every tensor that
 * is accepted is read to its last byte. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/safetensors.h"
#include "runner/base/json.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char dir[] = "/tmp/fkv-fuzz-safetensors-XXXXXX";
static char single_path[80], index_path[80], good_path[80];
static const char good_header[] = "{\"a\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[0,4]}}";

static void remove_dir(void)
{
    unlink(single_path);
    unlink(index_path);
    unlink(good_path);
    rmdir(dir);
}

static void put(const char *path, const void *data, size_t size)
{
    FILE *f = fopen(path, "wb");
    if (!f || (size && fwrite(data, 1, size, f) != size) || fclose(f)) abort();
}

static void set_up(void)
{
    char good[128] = {(char)(sizeof good_header - 1)};
    if (!mkdtemp(dir)) abort();
    snprintf(single_path, sizeof single_path, "%s/model.safetensors", dir);
    snprintf(index_path, sizeof index_path, "%s/model.safetensors.index.json", dir);
    snprintf(good_path, sizeof good_path, "%s/good", dir);
    memcpy(good + 8, good_header, sizeof good_header);
    put(good_path, good, 8 + sizeof good_header - 1 + 4);
    atexit(remove_dir);
}

/* Asks for every tensor that the header names, with the shape that it states. */
static void read_all(const fkv_safetensors *s, const uint8_t *data, size_t size)
{
    static volatile uint8_t sink;
    size_t n = 0;
    for (int i = 7; i >= 0; i--) n = n << 8 | data[i];
    if (n > size - 8) abort();
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
    }
    (void)sink;
    json_decref(header);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int ready;
    if (!ready++) set_up();
    const int is_index = size && data[0] == '#';
    unlink(index_path);
    put(is_index ? index_path : single_path, data + is_index, size - (size_t)is_index);

    fkv_safetensors *s;
    fkv_err err = {0};
    if (fkv_safetensors_open(dir, &s, &err)) {
        if (s || !err.message[0]) abort();
        return 0;
    }
    if (!is_index) read_all(s, data, size);
    fkv_safetensors_close(s);
    return 0;
}
