/* Maps and validates safetensors files: see safetensors.h.
 *
 * A file is 8 bytes of header length (little endian), a JSON header with every
 * tensor's dtype, shape and byte range, and the data. fkv_safetensors owns the
 * mappings, the paths and the tensors' names. Not for converting elements: that
 * is done where weights are loaded.
 */
#include "engine/model/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/model/dummy_weights.h"
#include "engine/model/model_files.h"
#include "runner/base/file.h"
#include "runner/base/json.h"
#include "runner/base/mem.h"

enum {
    LENGTH_BYTES = 8,
    MAX_HEADER_BYTES = 100 * 1000 * 1000, /* the format's own limit */
    /* Commas, colons and brackets in a header, at most: some 100,000 tensors.
     * Bounds the memory of its parsed form, which nested empty brackets could
     * otherwise make a hundred times as large as the text. */
    MAX_HEADER_MARKS = 1500000,
    MAX_INDEX_BYTES = 32 << 20,
    MAX_FILES = 4096,
    MAX_DIMS = 8,
};

typedef struct mapping {
    char *path;
    const char *name; /* the part of path behind the folder */
    uint8_t *bytes;
    size_t n_bytes;
} mapping;

typedef struct entry {
    fkv_st_tensor t;
    const mapping *file;
} entry;

struct fkv_safetensors {
    char *source; /* the index, or the only file */
    mapping *files;
    size_t n_files;
    entry *entries; /* sorted by name once everything is read */
    size_t n_entries, cap_entries;
    bool is_dummy;
    fkv_dummy_weights dummy;
};

static const struct {
    const char *name;
    fkv_st_dtype dtype;
    unsigned bits;
} dtypes[] = {
    {"BF16", FKV_ST_BF16, 16},    {"F16", FKV_ST_F16, 16},          {"F32", FKV_ST_F32, 32},
    {"BOOL", FKV_ST_OTHER, 8},    {"U8", FKV_ST_OTHER, 8},          {"I8", FKV_ST_OTHER, 8},
    {"I16", FKV_ST_OTHER, 16},    {"U16", FKV_ST_OTHER, 16},        {"I32", FKV_ST_OTHER, 32},
    {"U32", FKV_ST_OTHER, 32},    {"I64", FKV_ST_OTHER, 64},        {"U64", FKV_ST_OTHER, 64},
    {"F64", FKV_ST_OTHER, 64},    {"C64", FKV_ST_OTHER, 64},        {"F8_E4M3", FKV_ST_F8_E4M3, 8},
    {"F8_E5M2", FKV_ST_OTHER, 8}, {"F8_E8M0", FKV_ST_OTHER, 8},     {"F8_E4M3FNUZ", FKV_ST_OTHER, 8},
    {"F4", FKV_ST_OTHER, 4},      {"F8_E5M2FNUZ", FKV_ST_OTHER, 8}, {"F6_E2M3", FKV_ST_OTHER, 6},
    {"F6_E3M2", FKV_ST_OTHER, 6},
};

static fkv_status bad(fkv_err *err, const mapping *m, const char *tensor, const char *why)
{
    return fkv_fail_at(err, FKV_E_INPUT, m->path, 0, tensor, "%s", why);
}

static fkv_status map_file(mapping *m, fkv_err *err)
{
    fkv_status st = FKV_OK;
    struct stat sb;
    const int fd = open(m->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return fkv_fail_open(err, m->path);
    if (fstat(fd, &sb)) {
        st = fkv_fail_errno(err, m->path, "stat");
    } else if (!S_ISREG(sb.st_mode)) {
        st = bad(err, m, NULL, "not a regular file");
    } else if (sb.st_size < LENGTH_BYTES) {
        st = bad(err, m, NULL, "too short for a safetensors file");
    } else {
        void *p = mmap(NULL, (size_t)sb.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED) {
            st = fkv_fail_errno(err, m->path, "mmap of %lld bytes", (long long)sb.st_size);
        } else {
            m->bytes = p;
            m->n_bytes = (size_t)sb.st_size;
        }
    }
    close(fd);
    return st;
}

/* dtype, shape and data_offsets of one tensor; its data must be at data,
 * n_data bytes long. */
static fkv_status parse_tensor(const mapping *m, const char *name, const json_t *o, const uint8_t *data,
                               size_t n_data, fkv_st_tensor *t, fkv_err *err)
{
    const json_t *shape = json_object_get(o, "shape"), *range = json_object_get(o, "data_offsets");
    const char *dtype = json_string_value(json_object_get(o, "dtype"));
    if (!dtype) return bad(err, m, name, "has no dtype");
    size_t k = 0;
    while (k < sizeof dtypes / sizeof *dtypes && strcmp(dtypes[k].name, dtype) != 0) k++;
    if (k == sizeof dtypes / sizeof *dtypes)
        return fkv_fail_at(err, FKV_E_INPUT, m->path, 0, name, "unknown dtype %.40s", dtype);
    t->dtype = dtypes[k].dtype;
    t->dtype_name = dtypes[k].name;

    if (!json_is_array(shape)) return bad(err, m, name, "has no shape");
    if (json_array_size(shape) > MAX_DIMS) return bad(err, m, name, "has more than 8 dimensions");
    size_t n_bits = dtypes[k].bits;
    for (size_t i = 0; i < json_array_size(shape); i++) {
        const json_t *dim = json_array_get(shape, i);
        if (!json_is_integer(dim) || json_integer_value(dim) < 0)
            return bad(err, m, name, "shape must hold integers of at least 0");
        t->shape[t->n_dims++] = json_integer_value(dim);
        if (!fkv_mul_size(n_bits, (size_t)json_integer_value(dim), &n_bits))
            return bad(err, m, name, "shape is too large");
    }
    if (n_bits % 8) return bad(err, m, name, "is not a whole number of bytes");

    const json_t *b = json_array_get(range, 0), *e = json_array_get(range, 1);
    if (json_array_size(range) != 2 || !json_is_integer(b) || !json_is_integer(e))
        return bad(err, m, name, "data_offsets must be two integers");
    const json_int_t begin = json_integer_value(b), end = json_integer_value(e);
    if (begin < 0 || end < begin) return bad(err, m, name, "data_offsets run backwards");
    if ((uint64_t)end > n_data)
        return fkv_fail_at(err, FKV_E_INPUT, m->path, 0, name,
                           "data_offsets end at %lld, the file's data at %zu (is it cut short?)",
                           (long long)end, n_data);
    t->n_bytes = (size_t)(end - begin);
    if (t->n_bytes != n_bits / 8)
        return fkv_fail_at(err, FKV_E_INPUT, m->path, 0, name,
                           "data_offsets hold %zu bytes, shape and dtype need %zu", t->n_bytes, n_bits / 8);
    t->data = data + begin;
    t->file = m->path;
    return FKV_OK;
}

static int by_place(const void *a, const void *b)
{
    const fkv_st_tensor *x = &((const entry *)a)->t, *y = &((const entry *)b)->t;
    const uint8_t *px = x->data, *py = y->data;
    if (px != py) return px < py ? -1 : 1;
    return (x->n_bytes > y->n_bytes) - (x->n_bytes < y->n_bytes);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const entry *)a)->t.name, ((const entry *)b)->t.name);
}

/* The format wants the data covered exactly once. Sorts the entries by place. */
static fkv_status check_cover(const mapping *m, entry *entries, size_t n, const uint8_t *data, size_t n_data,
                              fkv_err *err)
{
    size_t at = 0;
    if (n) qsort(entries, n, sizeof *entries, by_place);
    for (size_t i = 0; i < n; i++) {
        const fkv_st_tensor *t = &entries[i].t;
        const size_t begin = (size_t)((const uint8_t *)t->data - data);
        if (begin < at) return bad(err, m, t->name, "overlaps another tensor");
        if (begin > at) return bad(err, m, t->name, "has bytes before it that belong to no tensor");
        at += t->n_bytes;
    }
    if (at < n_data)
        return fkv_fail_at(err, FKV_E_INPUT, m->path, 0, NULL, "%zu bytes at its end belong to no tensor",
                           n_data - at);
    return FKV_OK;
}

static fkv_status parse_header(const mapping *m, json_t **out, size_t *header_bytes, fkv_err *err)
{
    uint64_t n = 0;
    for (int i = LENGTH_BYTES - 1; i >= 0; i--) n = n << 8 | m->bytes[i];
    if (n > MAX_HEADER_BYTES || n > m->n_bytes - LENGTH_BYTES)
        return fkv_fail_at(err, FKV_E_INPUT, m->path, 0, NULL,
                           "not a safetensors file, or cut short: its header would be %llu bytes",
                           (unsigned long long)n);
    const char *text = (const char *)m->bytes + LENGTH_BYTES;
    json_error_t je;
    if (fkv_json_marks(text, (size_t)n) > MAX_HEADER_MARKS)
        return bad(err, m, NULL, "its header lists too many tensors");
    *out = fkv_json_parse(text, (size_t)n, JSON_REJECT_DUPLICATES, &je);
    if (!*out && json_error_code(&je) == json_error_out_of_memory)
        return fkv_fail_at(err, FKV_E_SYSTEM, m->path, 0, NULL, "%s", je.text);
    if (!*out)
        return fkv_fail_at(err, FKV_E_INPUT, m->path, 0, NULL, "its header is not valid JSON: %s", je.text);
    if (!json_is_object(*out)) return bad(err, m, NULL, "its header is not a JSON object");
    *header_bytes = (size_t)n;
    return FKV_OK;
}

static fkv_status read_file(fkv_safetensors *s, mapping *m, fkv_err *err)
{
    json_t *header = NULL;
    size_t header_bytes = 0;
    fkv_status st = map_file(m, err);
    if (!m->bytes || (st = parse_header(m, &header, &header_bytes, err))) goto out;
    const uint8_t *data = m->bytes + LENGTH_BYTES + header_bytes;
    const size_t n_data = m->n_bytes - LENGTH_BYTES - header_bytes, first = s->n_entries;

    const size_t need = s->n_entries + json_object_size(header);
    if (need > s->cap_entries || !s->entries) {
        entry *grown = fkv_realloc(s->entries, need, sizeof *grown);
        if (!grown) {
            st = fkv_fail_memory(err);
            goto out;
        }
        s->entries = grown;
        s->cap_entries = need;
    }
    const char *name;
    json_t *o;
    json_object_foreach(header, name, o)
    {
        if (!strcmp(name, "__metadata__")) continue;
        entry e = {.file = m};
        if ((st = parse_tensor(m, name, o, data, n_data, &e.t, err))) goto out;
        e.t.name = strdup(name);
        if (!e.t.name) {
            st = fkv_fail_memory(err);
            goto out;
        }
        s->entries[s->n_entries++] = e;
    }
    if ((st = check_cover(m, s->entries + first, s->n_entries - first, data, n_data, err))) goto out;
out:
    json_decref(header);
    return st;
}

/* Borrows the array: mappings must not move once entries point at them. */
static fkv_status add_file(fkv_safetensors *s, const char *dir, const char *name, fkv_err *err)
{
    mapping *m = &s->files[s->n_files];
    m->path = fkv_path_join(dir, name);
    if (!m->path) return fkv_fail_memory(err);
    m->name = m->path + strlen(m->path) - strlen(name);
    s->n_files++;
    return read_file(s, m, err);
}

static const entry *find(const fkv_safetensors *s, const char *name)
{
    const entry key = {.t.name = name};
    return s->n_entries ? bsearch(&key, s->entries, s->n_entries, sizeof key, by_name) : NULL;
}

static fkv_status sort_entries(fkv_safetensors *s, fkv_err *err)
{
    if (s->n_entries) qsort(s->entries, s->n_entries, sizeof *s->entries, by_name);
    for (size_t i = 1; i < s->n_entries; i++)
        if (!by_name(&s->entries[i - 1], &s->entries[i]))
            return fkv_fail_at(err, FKV_E_INPUT, s->entries[i].t.file, 0, s->entries[i].t.name,
                               "is in %s as well", s->entries[i - 1].file->name);
    return FKV_OK;
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The distinct file names of a weight_map, sorted; they must name files of the
 * model's own folder. */
static fkv_status list_files(const char *index, json_t *map, const char ***out, size_t *n_out, fkv_err *err)
{
    const char *tensor, **names = fkv_calloc(json_object_size(map), sizeof *names);
    json_t *v;
    size_t n = 0, distinct = 0;
    *out = names;
    if (!names) return fkv_fail_memory(err);
    json_object_foreach(map, tensor, v)
    {
        const char *name = json_string_value(v);
        if (!name || !name[0] || strchr(name, '/') || !strcmp(name, ".") || !strcmp(name, ".."))
            return fkv_fail_at(err, FKV_E_INPUT, index, 0, tensor, "must map to a plain file name");
        names[n++] = name;
    }
    if (n) qsort(names, n, sizeof *names, by_text);
    for (size_t i = 0; i < n; i++)
        if (!i || strcmp(names[i], names[distinct - 1]) != 0) names[distinct++] = names[i];
    if (!distinct || distinct > MAX_FILES)
        return fkv_fail_at(err, FKV_E_INPUT, index, 0, "weight_map", "names %zu files (1 to %d are allowed)",
                           distinct, MAX_FILES);
    *n_out = distinct;
    return FKV_OK;
}

static const char *base_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static fkv_status open_index(fkv_safetensors *s, const char *dir, fkv_err *err)
{
    json_t *index = NULL;
    const char **names = NULL, *tensor;
    size_t n = 0;
    json_t *v;
    fkv_status st = fkv_json_load(s->source, MAX_INDEX_BYTES, &index, err);
    if (st) goto out;
    json_t *map = json_object_get(index, "weight_map");
    if (!json_is_object(map)) {
        st = fkv_fail_at(err, FKV_E_INPUT, s->source, 0, "weight_map", "must be an object");
        goto out;
    }
    if ((st = list_files(s->source, map, &names, &n, err)) ||
        (st = fkv_model_files_alone(dir, base_of(s->source), names, n, err)))
        goto out;
    s->files = fkv_calloc(n, sizeof *s->files);
    if (!s->files) {
        st = fkv_fail_memory(err);
        goto out;
    }
    for (size_t i = 0; i < n; i++)
        if ((st = add_file(s, dir, names[i], err))) goto out;
    if ((st = sort_entries(s, err))) goto out;
    json_object_foreach(map, tensor, v)
    {
        const entry *e = find(s, tensor);
        if (!e || strcmp(e->file->name, json_string_value(v)) != 0) {
            st =
                fkv_fail_at(err, FKV_E_INPUT, s->source, 0, tensor, "is not in %.200s", json_string_value(v));
            goto out;
        }
    }
out:
    free(names);
    json_decref(index);
    return st;
}

static fkv_status open_single(fkv_safetensors *s, const char *dir, fkv_err *err)
{
    const char *name = base_of(s->source);
    s->files = fkv_calloc(1, sizeof *s->files);
    if (!s->files) return fkv_fail_memory(err);
    fkv_status st = fkv_model_files_alone(dir, name, &name, 1, err);
    if (!st) st = add_file(s, dir, name, err);
    return st ? st : sort_entries(s, err);
}

fkv_status fkv_safetensors_open(const char *dir, fkv_safetensors **out, fkv_err *err)
{
    *out = NULL;
    bool is_index = false;
    fkv_safetensors *s = calloc(1, sizeof *s);
    if (!s) return fkv_fail_memory(err);
    fkv_status st = fkv_model_files_weights(dir, &s->source, &is_index, err);
    if (!st) st = is_index ? open_index(s, dir, err) : open_single(s, dir, err);
    if (st)
        fkv_safetensors_close(s);
    else
        *out = s;
    return st;
}

fkv_status fkv_safetensors_open_dummy(uint64_t seed, size_t max_tensor, size_t max_vector,
                                      fkv_safetensors **out, fkv_err *err)
{
    *out = NULL;
    fkv_safetensors *s = calloc(1, sizeof *s);
    if (!s) return fkv_fail_memory(err);
    s->is_dummy = true;
    const fkv_status st = fkv_dummy_weights_open(seed, max_tensor, max_vector, &s->dummy, err);
    if (st)
        fkv_safetensors_close(s);
    else
        *out = s;
    return st;
}

static fkv_status get_dummy(const fkv_safetensors *s, const char *name, const int64_t *shape, int n_dims,
                            fkv_st_tensor *out, fkv_err *err)
{
    size_t n = 1;
    *out = (fkv_st_tensor){
        .name = name, .dtype = FKV_ST_BF16, .dtype_name = "BF16", .n_dims = n_dims, .file = "dummy weights"};
    for (int i = 0; i < n_dims; i++) {
        out->shape[i] = shape[i];
        if (!fkv_mul_size(n, (size_t)shape[i], &n)) return fkv_fail_memory(err);
    }
    out->n_bytes = 2 * n;
    out->data = fkv_dummy_weights_get(&s->dummy, name, n_dims);
    return FKV_OK;
}

void fkv_safetensors_close(fkv_safetensors *s)
{
    if (!s) return;
    fkv_dummy_weights_close(&s->dummy);
    for (size_t i = 0; i < s->n_entries; i++) free((char *)s->entries[i].t.name);
    free(s->entries);
    for (size_t i = 0; i < s->n_files; i++) {
        if (s->files[i].bytes) munmap(s->files[i].bytes, s->files[i].n_bytes);
        free(s->files[i].path);
    }
    free(s->files);
    free(s->source);
    free(s);
}

void fkv_st_put_shape(char *out, size_t size, const int64_t *shape, int n_dims)
{
    size_t at = 0;
    out[0] = '\0';
    for (int i = 0; i < n_dims && at < size; i++) {
        const int n = snprintf(out + at, size - at, "%s%lld", i ? " x " : "", (long long)shape[i]);
        if (n < 0) return;
        at += (size_t)n;
    }
}

bool fkv_safetensors_find(const fkv_safetensors *s, const char *name, fkv_st_tensor *out)
{
    const entry *e = find(s, name);
    if (e) *out = e->t;
    return e != NULL;
}

fkv_status fkv_safetensors_get(const fkv_safetensors *s, const char *name, const int64_t *shape, int n_dims,
                               fkv_st_tensor *out, fkv_err *err)
{
    if (s->is_dummy) return get_dummy(s, name, shape, n_dims, out, err);
    const entry *e = find(s, name);
    if (!e) return fkv_fail_at(err, FKV_E_INPUT, s->source, 0, name, "this tensor is missing");
    const fkv_st_tensor *t = &e->t;
    bool same = t->n_dims == n_dims;
    for (int i = 0; same && i < n_dims; i++) same = t->shape[i] == shape[i];
    if (!same) {
        char got[192], want[192];
        fkv_st_put_shape(got, sizeof got, t->shape, t->n_dims);
        fkv_st_put_shape(want, sizeof want, shape, n_dims);
        return fkv_fail_at(err, FKV_E_INPUT, t->file, 0, name, "its shape is [%s], the config's is [%s]", got,
                           want);
    }
    if (t->dtype == FKV_ST_OTHER)
        return fkv_fail_at(err, FKV_E_INPUT, t->file, 0, name,
                           "its dtype %s is not supported (BF16, F16, F32 and F8_E4M3 are)", t->dtype_name);
    *out = *t;
    return FKV_OK;
}
