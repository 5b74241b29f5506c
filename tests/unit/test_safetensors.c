/* safetensors files: what is read, and that each kind of damage is refused with
 * the file's and the tensor's name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/model/safetensors.h"
#include "runner/base/file.h"

static char dir[256];

static char *in_dir(const char *name)
{
    return fkv_path_join(dir, name);
}

static void put(const char *name, const void *bytes, size_t n)
{
    fkv_err err = {0};
    char *path = in_dir(name);
    assert_int_equal(fkv_file_replace(path, bytes, n, &err), FKV_OK);
    free(path);
}

/* A file of this header and n_data bytes 0, 1, 2, ... */
static void put_st(const char *name, const char *header, size_t n_data)
{
    fkv_err err = {0};
    fkv_buf b = {0};
    const size_t n = strlen(header);
    for (int i = 0; i < 8; i++) assert_int_equal(fkv_buf_append(&b, &(char){(char)(n >> 8 * i)}, 1, &err), 0);
    assert_int_equal(fkv_buf_puts(&b, header, &err), 0);
    for (size_t i = 0; i < n_data; i++) assert_int_equal(fkv_buf_append(&b, &(char){(char)i}, 1, &err), 0);
    put(name, b.data, b.len);
    fkv_buf_free(&b);
}

static void clean(void)
{
    static const char *const names[] = {"model.safetensors", "model.safetensors.index.json",
                                        "one.safetensors", "two.safetensors"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char *path = in_dir(names[i]);
        unlink(path);
        free(path);
    }
}

static void opening_fails(const char *file, const char *key, const char *word)
{
    fkv_safetensors *s;
    fkv_err err = {0};
    char text[1500];
    const fkv_status st = fkv_safetensors_open(dir, &s, &err);
    fkv_err_format(&err, text, sizeof text);
    assert_null(s);
    if (st != FKV_E_INPUT) fail_msg("status %d: %s", st, text);
    if (!strstr(err.file, file) || strcmp(err.key, key) != 0 || !strstr(err.message, word))
        fail_msg("wanted %s, %s, %s: %s", file, key, word, text);
}

static void header_fails(const char *header, size_t n_data, const char *key, const char *word)
{
    put_st("model.safetensors", header, n_data);
    opening_fails("model.safetensors", key, word);
}

static fkv_safetensors *opened(void)
{
    fkv_safetensors *s;
    fkv_err err = {0};
    const fkv_status st = fkv_safetensors_open(dir, &s, &err);
    if (st) fail_msg("%s: %s: %s", err.file, err.key, err.message);
    return s;
}

#define A "\"a\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[0,12]}"
#define B "\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[12,20]}"

static void test_tensors_are_found(void **state)
{
    (void)state;
    fkv_st_tensor t;
    fkv_err err = {0};
    /* Out of order, with metadata, padding, an empty tensor, a scalar and a dtype of no use here. */
    put_st("model.safetensors",
           "{\"__metadata__\":{\"format\":\"pt\"}," B ",\"none\":{\"dtype\":\"F16\",\"shape\":[0,5],"
           "\"data_offsets\":[12,12]},\"flag\":{\"dtype\":\"BOOL\",\"shape\":[],\"data_offsets\":[20,21]}," A
           "}      ",
           21);
    fkv_safetensors *s = opened();
    assert_int_equal(fkv_safetensors_get(s, "a", (int64_t[]){2, 3}, 2, &t, &err), FKV_OK);
    assert_string_equal(t.name, "a");
    assert_int_equal(t.dtype, FKV_ST_BF16);
    assert_int_equal(t.n_dims, 2);
    assert_int_equal(t.shape[1], 3);
    assert_int_equal(t.n_bytes, 12);
    assert_non_null(strstr(t.file, "model.safetensors"));
    assert_int_equal(((const uint8_t *)t.data)[11], 11);
    assert_int_equal(fkv_safetensors_get(s, "b", (int64_t[]){2}, 1, &t, &err), FKV_OK);
    assert_int_equal(t.dtype, FKV_ST_F32);
    assert_int_equal(((const uint8_t *)t.data)[0], 12);
    assert_int_equal(fkv_safetensors_get(s, "none", (int64_t[]){0, 5}, 2, &t, &err), FKV_OK);
    assert_int_equal(t.n_bytes, 0);

    assert_int_equal(fkv_safetensors_get(s, "flag", NULL, 0, &t, &err), FKV_E_INPUT);
    assert_string_equal(err.key, "flag");
    assert_non_null(strstr(err.message, "dtype"));
    err = (fkv_err){0};
    assert_int_equal(fkv_safetensors_get(s, "a", (int64_t[]){3, 2}, 2, &t, &err), FKV_E_INPUT);
    assert_string_equal(err.key, "a");
    assert_non_null(strstr(err.message, "[2 x 3]"));
    assert_non_null(strstr(err.message, "[3 x 2]"));
    err = (fkv_err){0};
    assert_int_equal(fkv_safetensors_get(s, "a", (int64_t[]){2, 3, 1}, 3, &t, &err), FKV_E_INPUT);
    err = (fkv_err){0};
    assert_int_equal(fkv_safetensors_get(s, "c", (int64_t[]){1}, 1, &t, &err), FKV_E_INPUT);
    assert_string_equal(err.key, "c");
    assert_non_null(strstr(err.file, "model.safetensors"));
    assert_non_null(strstr(err.message, "missing"));
    fkv_safetensors_close(s);

    put_st("model.safetensors", "{}", 0); /* no tensor at all */
    s = opened();
    assert_int_equal(fkv_safetensors_get(s, "a", (int64_t[]){1}, 1, &t, &err), FKV_E_INPUT);
    fkv_safetensors_close(s);
    clean();
}

static void test_damaged_headers(void **state)
{
    (void)state;
    header_fails("", 0, "", "JSON");
    header_fails("xxxx", 0, "", "JSON");
    header_fails("[1]", 0, "", "object");
    header_fails("{" A "," A "}", 12, "", "duplicate");
    header_fails("{\"a\":5}", 0, "a", "dtype");
    header_fails("{\"a\":{\"dtype\":\"Q7\",\"shape\":[2],\"data_offsets\":[0,2]}}", 2, "a", "Q7");
    header_fails("{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, "a", "shape");
    header_fails("{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4, "a", "shape");
    header_fails("{\"a\":{\"dtype\":\"F32\",\"shape\":[1.0],\"data_offsets\":[0,4]}}", 4, "a", "shape");
    header_fails("{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}", 4, "a",
                 "dimensions");
    header_fails("{\"a\":{\"dtype\":\"F32\",\"shape\":[1099511627776,1099511627776],\"data_offsets\":[0,0]}}",
                 0, "a", "too large");
    header_fails("{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]}}", 0, "a",
                 "too large"); /* x 4 bytes would wrap to 0 */
    header_fails("{\"a\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,1]}}", 1, "a", "whole number");
    header_fails("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4, "a", "need 8");
    header_fails("{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "a", "data_offsets");
    header_fails("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", 4, "a", "data_offsets");
    header_fails("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4.0]}}", 4, "a",
                 "data_offsets");
    header_fails("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[-4,0]}}", 4, "a", "backwards");
    header_fails("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", 4, "a", "backwards");
    header_fails("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,1152921504606846976]}}", 4, "a",
                 "the file's data at 4");
    header_fails("{" A "," B "}", 19, "b", "cut short");
    header_fails("{" A "," B "}", 21, "", "1 bytes at its end");
    header_fails("{" B "}", 20, "b", "belong to no tensor");
    header_fails("{" A ",\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,16]}}", 16, "b",
                 "overlaps");
    header_fails("{" A ",\"b\":{\"dtype\":\"BF16\",\"shape\":[6],\"data_offsets\":[0,12]}}", 12, "b",
                 "overlaps");
    clean();
}

static void test_damaged_files(void **state)
{
    (void)state;
    char *path = in_dir("model.safetensors");
    opening_fails("model.safetensors", "", "can't be opened");
    put("model.safetensors", "", 0);
    opening_fails("model.safetensors", "", "too short");
    put("model.safetensors", "\0\0\0\0\0\0\0", 7);
    opening_fails("model.safetensors", "", "too short");
    put("model.safetensors", "\3\0\0\0\0\0\0\0{}", 10); /* a header of 3, 2 are there */
    opening_fails("model.safetensors", "", "header would be 3 bytes");
    put("model.safetensors", "\0\0\0\0\0\0\0\100{}", 10);
    opening_fails("model.safetensors", "", "header would be 4611686018427387904 bytes");
    put("model.safetensors", "\377\377\377\377\377\377\377\377{}", 10);
    opening_fails("model.safetensors", "", "header would be");
    unlink(path);
    assert_int_equal(mkdir(path, 0700), 0);
    opening_fails("model.safetensors", "", "not a regular file");
    rmdir(path);
    free(path);
}

/* A small file must not grow a hundredfold in memory before it is refused. */
static void test_header_of_nothing_but_brackets(void **state)
{
    (void)state;
    fkv_buf b = {0};
    fkv_err err = {0};
    assert_int_equal(fkv_buf_puts(&b, "{\"a\":[", &err), 0);
    for (int i = 0; i < 1000000; i++) assert_int_equal(fkv_buf_puts(&b, "[],", &err), 0);
    assert_int_equal(fkv_buf_puts(&b, "[]]}", &err), 0);
    header_fails(b.data, 0, "", "too many");
    fkv_buf_free(&b);
    clean();
}

static void put_index(const char *text)
{
    put("model.safetensors.index.json", text, strlen(text));
}

static void test_sharded(void **state)
{
    (void)state;
    fkv_st_tensor t;
    fkv_err err = {0};
    put_st("one.safetensors", "{" A "}", 12);
    put_st("two.safetensors", "{\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8);
    put_index("{\"metadata\":{},\"weight_map\":{\"b\":\"two.safetensors\",\"a\":\"one.safetensors\"}}");
    fkv_safetensors *s = opened();
    assert_int_equal(fkv_safetensors_get(s, "a", (int64_t[]){2, 3}, 2, &t, &err), FKV_OK);
    assert_non_null(strstr(t.file, "one.safetensors"));
    assert_int_equal(fkv_safetensors_get(s, "b", (int64_t[]){2}, 1, &t, &err), FKV_OK);
    assert_non_null(strstr(t.file, "two.safetensors"));
    assert_int_equal(fkv_safetensors_get(s, "c", (int64_t[]){2}, 1, &t, &err), FKV_E_INPUT);
    assert_non_null(strstr(err.file, "index.json"));
    fkv_safetensors_close(s);

    static const char index[] = "model.safetensors.index.json";
    put_index("{\"weight_map\":{\"b\":\"one.safetensors\",\"a\":\"two.safetensors\"}}");
    opening_fails(index, "b", "is not in one.safetensors");
    put_index("{\"weight_map\":{\"a\":\"one.safetensors\",\"c\":\"two.safetensors\"}}");
    opening_fails(index, "c", "is not in two.safetensors");
    put_index("{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"three.safetensors\"}}");
    opening_fails("three.safetensors", "", "can't be opened");
    put_index("{\"weight_map\":{\"a\":\"../one.safetensors\"}}");
    opening_fails(index, "a", "plain file name");
    put_index("{\"weight_map\":{\"a\":\"/etc/passwd\"}}");
    opening_fails(index, "a", "plain file name");
    put_index("{\"weight_map\":{\"a\":\"..\"}}");
    opening_fails(index, "a", "plain file name");
    put_index("{\"weight_map\":{\"a\":\"\"}}");
    opening_fails(index, "a", "plain file name");
    put_index("{\"weight_map\":{\"a\":7}}");
    opening_fails(index, "a", "plain file name");
    put_index("{\"weight_map\":{}}");
    opening_fails(index, "weight_map", "0 files");
    put_index("{\"weight_map\":[]}");
    opening_fails(index, "weight_map", "object");
    put_index("[]");
    opening_fails(index, "weight_map", "object");
    put_index("{\"weight_map\":");
    opening_fails(index, "", "JSON");
    put_st("two.safetensors", "{" A "}", 12);
    put_index("{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\"}}");
    opening_fails(".safetensors", "a", "as well");
    put("two.safetensors", "x", 1);
    opening_fails("two.safetensors", "", "too short");
    clean();
}

static void test_too_many_files(void **state)
{
    (void)state;
    fkv_buf b = {0};
    fkv_err err = {0};
    assert_int_equal(fkv_buf_puts(&b, "{\"weight_map\":{", &err), 0);
    for (int i = 0; i <= 4096; i++)
        assert_int_equal(fkv_buf_printf(&b, &err, "%s\"t%d\":\"f%d\"", i ? "," : "", i, i), 0);
    assert_int_equal(fkv_buf_puts(&b, "}}", &err), 0);
    put_index(b.data);
    opening_fails("index.json", "weight_map", "4097 files");
    fkv_buf_free(&b);
    clean();
}

static void test_needle_tiny(void **state)
{
    (void)state;
    fkv_safetensors *s;
    fkv_st_tensor t;
    fkv_err err = {0};
    assert_int_equal(fkv_safetensors_open(FKV_TEST_DIR "/data/needle-tiny", &s, &err), FKV_OK);
    assert_int_equal(
        fkv_safetensors_get(s, "model.layers.3.self_attn.k_proj.weight", (int64_t[]){256, 128}, 2, &t, &err),
        FKV_OK);
    assert_int_equal(t.dtype, FKV_ST_BF16);
    fkv_safetensors_close(s);
}

static int make_dir(void **state)
{
    (void)state;
    const char *tmp = getenv("TMPDIR");
    snprintf(dir, sizeof dir, "%s/fkv-safetensors-XXXXXX", tmp ? tmp : "/tmp");
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    (void)state;
    clean();
    return rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tensors_are_found), cmocka_unit_test(test_damaged_headers),
        cmocka_unit_test(test_damaged_files),     cmocka_unit_test(test_header_of_nothing_but_brackets),
        cmocka_unit_test(test_sharded),           cmocka_unit_test(test_too_many_files),
        cmocka_unit_test(test_needle_tiny),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
