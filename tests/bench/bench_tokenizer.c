/* The speed of a tokenizer on one thread.
 *
 *   bench_tokenizer MODEL_DIR TEXTS [ROUNDS]
 *
 * TEXTS holds texts with a NUL behind each. Prints a line: the best round's seconds, the bytes, the number
 * of ids, and FNV-1a over the ids and the texts' ends, for tokenizer_speed.py to compare with HF's. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runner/base/clock.h"
#include "runner/base/file.h"
#include "tokenizer/tokenizer.h"

static void must(fkv_status st, const fkv_err *err)
{
    char text[1536];
    if (!st) return;
    fkv_err_format(err, text, sizeof text);
    fprintf(stderr, "bench_tokenizer: %s\n", text);
    exit(fkv_exit_code(st));
}

static uint64_t mix(uint64_t hash, int32_t id)
{
    return (hash ^ (uint32_t)id) * 0x100000001b3ULL;
}

int main(int argc, char **argv)
{
    fkv_err err = {0};
    fkv_tokenizer *t;
    fkv_tokenizer_scratch *s;
    fkv_buf texts = {0};
    fkv_ids ids = {0};
    double best = 0;
    long long n_ids = 0;
    uint64_t hash = 0;
    if (argc < 3) {
        fprintf(stderr, "usage: bench_tokenizer MODEL_DIR TEXTS [ROUNDS]\n");
        return 2;
    }
    must(fkv_tokenizer_open(argv[1], &t, &err), &err);
    must(fkv_file_read(argv[2], (size_t)1 << 30, &texts, &err), &err);
    for (int round = 0, n = argc > 3 ? atoi(argv[3]) : 3; round < n; round++) {
        must(fkv_tokenizer_scratch_new(t, &s, &err), &err); /* an empty word cache */
        double seconds = 0;
        n_ids = 0;
        hash = 0xcbf29ce484222325ULL;
        for (const char *at = texts.data; at < texts.data + texts.len; at += strlen(at) + 1) {
            const double start = fkv_seconds();
            must(fkv_tokenizer_encode(t, s, at, strlen(at), false, &ids, NULL, NULL, &err), &err);
            seconds += fkv_seconds() - start;
            for (size_t i = 0; i < ids.len; i++) hash = mix(hash, ids.data[i]);
            hash = mix(hash, -1);
            n_ids += (long long)ids.len;
        }
        if (round == 0 || seconds < best) best = seconds;
        fkv_tokenizer_scratch_free(s);
    }
    printf("%.4f %zu %lld %016llx\n", best, texts.len, n_ids, (unsigned long long)hash);
    fkv_ids_free(&ids);
    fkv_buf_free(&texts);
    fkv_tokenizer_close(t);
    return 0;
}
