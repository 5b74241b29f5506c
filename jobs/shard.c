/* Shards: see shard.h. A writer or reader owns its file, its zstd state and its
 * buffers; memory is the level's window, two buffers and the longest row. */
#include "jobs/shard.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>
#include <zstd.h>

#include "jobs/row.h"
#include "runner/base/file.h"
#include "runner/base/hash.h"
#include "runner/base/mem.h"

enum { WINDOW_LOG_MAX = 27 }; /* the largest window of any level without long mode */

struct fkv_shard_writer {
    char *path, *tmp; /* tmp: path + who + ".tmp" */
    int fd;
    bool committed;
    ZSTD_CCtx *zstd;
    XXH3_state_t *hash;
    char *out; /* [out_size] */
    size_t out_size;
    int64_t bytes;
};

struct fkv_shard_reader {
    char *path;
    int fd;
    bool ended, in_frame;
    ZSTD_DCtx *zstd;
    XXH3_state_t *hash;
    char *in; /* [in_size], in_n of them read, in_at consumed */
    size_t in_size, in_n, in_at;
    fkv_buf text;   /* decompressed, from the current row on */
    size_t text_at; /* where the next row begins */
    int64_t bytes;
};

void fkv_shard_name(int64_t index, char out[FKV_SHARD_NAME_SIZE])
{
    snprintf(out, FKV_SHARD_NAME_SIZE, "shards/shard-%06lld.jsonl.zst", (long long)index);
}

static fkv_status zstd_error(size_t code, const char *path, fkv_err *err)
{
    return fkv_fail_at(err, FKV_E_SYSTEM, path, 0, NULL, "zstd: %s", ZSTD_getErrorName(code));
}

fkv_status fkv_shard_writer_open(const char *path, const char *who, int level, uint64_t total_bytes,
                                 fkv_shard_writer **writer, fkv_err *err)
{
    fkv_status st = FKV_OK;
    *writer = NULL;
    fkv_shard_writer *w = fkv_calloc(1, sizeof *w);
    if (!w) return fkv_fail_memory(err);
    w->fd = -1;
    const size_t n_tmp = strlen(path) + strlen(who) + sizeof ".tmp";
    w->out_size = ZSTD_CStreamOutSize();
    w->path = strdup(path);
    w->tmp = malloc(n_tmp);
    w->zstd = ZSTD_createCCtx();
    w->hash = XXH3_createState();
    w->out = malloc(w->out_size);
    if (!w->path || !w->tmp || !w->zstd || !w->hash || !w->out) {
        st = fkv_fail_memory(err);
        goto out;
    }
    snprintf(w->tmp, n_tmp, "%s%s.tmp", path, who);
    XXH3_64bits_reset(w->hash);
    size_t code = ZSTD_CCtx_setParameter(w->zstd, ZSTD_c_compressionLevel, level);
    if (!ZSTD_isError(code)) code = ZSTD_CCtx_setParameter(w->zstd, ZSTD_c_checksumFlag, 1);
    if (!ZSTD_isError(code)) code = ZSTD_CCtx_setPledgedSrcSize(w->zstd, total_bytes);
    if (ZSTD_isError(code)) {
        st = zstd_error(code, path, err);
        goto out;
    }
    w->fd = open(w->tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (w->fd < 0) st = fkv_fail_errno(err, w->tmp, "create");
out:
    if (st) {
        fkv_shard_writer_close(w);
        w = NULL;
    }
    *writer = w;
    return st;
}

static fkv_status compress(fkv_shard_writer *w, const char *bytes, size_t n, ZSTD_EndDirective end,
                           fkv_err *err)
{
    ZSTD_inBuffer in = {bytes, n, 0};
    for (;;) {
        ZSTD_outBuffer out = {w->out, w->out_size, 0};
        const size_t left = ZSTD_compressStream2(w->zstd, &out, &in, end);
        if (ZSTD_isError(left)) return zstd_error(left, w->path, err);
        const fkv_status st = fkv_write_all(w->fd, w->out, out.pos, w->tmp, err);
        if (st) return st;
        XXH3_64bits_update(w->hash, w->out, out.pos);
        w->bytes += (int64_t)out.pos;
        if (end == ZSTD_e_end ? left == 0 : in.pos == in.size) return FKV_OK;
    }
}

fkv_status fkv_shard_writer_add(fkv_shard_writer *w, const char *row, size_t n, fkv_err *err)
{
    return compress(w, row, n, ZSTD_e_continue, err);
}

fkv_status fkv_shard_writer_commit(fkv_shard_writer *w, int64_t *bytes, uint64_t *xxh3, fkv_err *err)
{
    fkv_status st = compress(w, NULL, 0, ZSTD_e_end, err);
    if (!st) st = fkv_file_commit(w->fd, w->tmp, w->path, err);
    if (st) return st;
    w->committed = true;
    *bytes = w->bytes;
    *xxh3 = XXH3_64bits_digest(w->hash);
    return FKV_OK;
}

void fkv_shard_writer_close(fkv_shard_writer *w)
{
    if (!w) return;
    if (w->fd >= 0) {
        close(w->fd);
        if (!w->committed) unlink(w->tmp);
    }
    free(w->out);
    XXH3_freeState(w->hash);
    ZSTD_freeCCtx(w->zstd);
    free(w->tmp);
    free(w->path);
    free(w);
}

fkv_status fkv_shard_reader_open(const char *path, fkv_shard_reader **reader, fkv_err *err)
{
    fkv_status st = FKV_OK;
    *reader = NULL;
    fkv_shard_reader *r = fkv_calloc(1, sizeof *r);
    if (!r) return fkv_fail_memory(err);
    r->fd = -1;
    r->in_size = ZSTD_DStreamInSize();
    r->path = strdup(path);
    r->zstd = ZSTD_createDCtx();
    r->hash = XXH3_createState();
    r->in = malloc(r->in_size);
    if (!r->path || !r->zstd || !r->hash || !r->in) {
        st = fkv_fail_memory(err);
        goto out;
    }
    XXH3_64bits_reset(r->hash);
    const size_t code = ZSTD_DCtx_setParameter(r->zstd, ZSTD_d_windowLogMax, WINDOW_LOG_MAX);
    if (ZSTD_isError(code)) {
        st = zstd_error(code, path, err);
        goto out;
    }
    if ((st = fkv_buf_reserve(&r->text, ZSTD_DStreamOutSize(), err))) goto out;
    r->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (r->fd < 0) st = fkv_fail_open(err, path);
out:
    if (st) {
        fkv_shard_reader_close(r);
        r = NULL;
    }
    *reader = r;
    return st;
}

/* Reads the next compressed bytes; none are left when in_n stays 0. */
static fkv_status fill(fkv_shard_reader *r, fkv_err *err)
{
    ssize_t n;
    do {
        n = read(r->fd, r->in, r->in_size);
    } while (n < 0 && errno == EINTR);
    if (n < 0) return fkv_fail_errno(err, r->path, "read");
    r->in_at = 0;
    r->in_n = (size_t)n;
    XXH3_64bits_update(r->hash, r->in, r->in_n);
    r->bytes += n;
    return FKV_OK;
}

/* Appends decompressed text; sets ended at the end of the file. */
static fkv_status decompress(fkv_shard_reader *r, fkv_err *err)
{
    fkv_status st = FKV_OK;
    if (r->in_at == r->in_n && (st = fill(r, err))) return st;
    if (r->in_n == 0 && !r->in_frame) {
        r->ended = true;
        return FKV_OK;
    }
    if ((st = fkv_buf_reserve(&r->text, ZSTD_DStreamOutSize(), err))) return st;
    ZSTD_inBuffer in = {r->in, r->in_n, r->in_at};
    ZSTD_outBuffer out = {r->text.data, r->text.cap - 1, r->text.len};
    const size_t left = ZSTD_decompressStream(r->zstd, &out, &in);
    if (ZSTD_isError(left))
        return fkv_fail_at(err, FKV_E_INPUT, r->path, 0, NULL, "damaged: %s", ZSTD_getErrorName(left));
    /* Without new input there may still be output that did not fit before. */
    if (r->in_n == 0 && out.pos == r->text.len)
        return fkv_fail_at(err, FKV_E_INPUT, r->path, 0, NULL, "ends in the middle: the file is cut");
    r->in_at = in.pos;
    r->text.len = out.pos;
    r->in_frame = left != 0; /* 0: the frame is done and flushed */
    return FKV_OK;
}

fkv_status fkv_shard_reader_next(fkv_shard_reader *r, const char **row, size_t *n, fkv_err *err)
{
    size_t searched = 0; /* bytes from text_at on that hold no "\n" */
    for (;;) {
        const char *from = r->text.data + r->text_at;
        const size_t have = r->text.len - r->text_at;
        const char *nl = have > searched ? memchr(from + searched, '\n', have - searched) : NULL;
        if (nl) {
            *row = from;
            *n = (size_t)(nl - from) + 1;
            r->text_at += *n;
            return FKV_OK;
        }
        if (have >= FKV_ROW_MAX_BYTES)
            return fkv_fail_at(err, FKV_E_INPUT, r->path, 0, NULL, "has a row of more than %zu bytes",
                               FKV_ROW_MAX_BYTES);
        if (r->ended && have == 0) return FKV_END;
        if (r->ended) return fkv_fail_at(err, FKV_E_INPUT, r->path, 0, NULL, "its last row has no line end");
        searched = have;
        if (r->text_at) {
            memmove(r->text.data, from, have);
            r->text.len = have;
            r->text_at = 0;
        }
        const fkv_status st = decompress(r, err);
        if (st) return st;
    }
}

fkv_status fkv_shard_reader_check(const fkv_shard_reader *r, int64_t bytes, uint64_t xxh3, fkv_err *err)
{
    if (r->bytes != bytes)
        return fkv_fail_at(err, FKV_E_INPUT, r->path, 0, NULL, "has %lld bytes, the manifest says %lld",
                           (long long)r->bytes, (long long)bytes);
    const uint64_t got = XXH3_64bits_digest(r->hash);
    if (got != xxh3) {
        char a[17], b[17];
        fkv_hash_hex(got, a);
        fkv_hash_hex(xxh3, b);
        return fkv_fail_at(err, FKV_E_INPUT, r->path, 0, NULL, "has checksum %s, the manifest says %s", a, b);
    }
    return FKV_OK;
}

void fkv_shard_reader_close(fkv_shard_reader *r)
{
    if (!r) return;
    if (r->fd >= 0) close(r->fd);
    fkv_buf_free(&r->text);
    free(r->in);
    XXH3_freeState(r->hash);
    ZSTD_freeDCtx(r->zstd);
    free(r->path);
    free(r);
}
