/* Frames of zstd: see unzstd.h. The layout of a frame's header is RFC 8878's. */
#include "jobs/unzstd.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>
#include <zstd_errors.h>

enum { WINDOW_LOG_MOST = 31 }; /* the library's */

struct fkv_unzstd {
    ZSTD_DCtx *decoder;
    int64_t max_window;
    bool inside; /* a frame */
};

static uint64_t read_le(const uint8_t *p, size_t n)
{
    uint64_t x = 0;
    while (n--) x = x << 8 | p[n];
    return x;
}

static bool is_frame(const uint8_t *head)
{
    return read_le(head, 4) == ZSTD_MAGICNUMBER;
}

bool fkv_unzstd_begins(const void *head, size_t n)
{
    return n >= 4 &&
           (is_frame(head) || (read_le(head, 4) & ZSTD_MAGIC_SKIPPABLE_MASK) == ZSTD_MAGIC_SKIPPABLE_START);
}

/* The frame's window in bytes; 0 where the header is cut, which its decoder will say. */
static uint64_t window_of(const uint8_t *h, size_t n)
{
    static const uint8_t dictionary_bytes[] = {0, 1, 2, 4};
    if (n < 6 || !is_frame(h)) return 0;
    if (!(h[4] & 0x20)) {
        const uint64_t base = (uint64_t)1 << (10 + (h[5] >> 3));
        return base + base / 8 * (h[5] & 7);
    }
    /* A single segment: all of the content. */
    const size_t at = 5u + dictionary_bytes[h[4] & 3];
    const size_t n_size = (size_t)1 << (h[4] >> 6);
    return at + n_size > n ? 0 : read_le(h + at, n_size) + (n_size == 2 ? 256 : 0);
}

/* Bytes in the unit in which they are whole: "2 GiB", or as the job file takes them: "2G". */
static const char *in_words(uint64_t bytes, bool key, char text[40])
{
    static const char *const units[][2] = {{"", " bytes"}, {"K", " KiB"}, {"M", " MiB"}, {"G", " GiB"}};
    int unit = 0;
    while (unit < 3 && bytes && bytes % 1024 == 0) {
        bytes /= 1024;
        unit++;
    }
    snprintf(text, 40, "%llu%s", (unsigned long long)bytes, units[unit][!key]);
    return text;
}

static bool check_window(const fkv_unzstd *u, const uint8_t *in, size_t n, fkv_fault *fault)
{
    char window[40], most[40], key[40];
    const uint64_t w = window_of(in, n);
    if (w <= (uint64_t)u->max_window) return true;
    in_words(w, false, window);
    in_words((uint64_t)u->max_window, false, most);
    if (w <= (uint64_t)1 << WINDOW_LOG_MOST)
        fkv_fault_set(
            fault, 0,
            "zstd: a window of %s, more than input.max_window, %s: set input.max_window = %s, which may "
            "take so much memory, or compress the data anew without --long",
            window, most, in_words(w, true, key));
    else
        fkv_fault_set(
            fault, 0,
            "zstd: a window of %s, more than input.max_window, %s, and than the 2 GiB that can be read",
            window, most);
    return false;
}

fkv_unzstd *fkv_unzstd_new(int64_t max_window)
{
    fkv_unzstd *u = calloc(1, sizeof *u);
    if (!u) return NULL;
    u->max_window = max_window;
    u->decoder = ZSTD_createDCtx();
    if (u->decoder && !ZSTD_isError(ZSTD_DCtx_setParameter(u->decoder, ZSTD_d_windowLogMax, WINDOW_LOG_MOST)))
        return u;
    fkv_unzstd_free(u);
    return NULL;
}

void fkv_unzstd_free(fkv_unzstd *u)
{
    if (!u) return;
    ZSTD_freeDCtx(u->decoder);
    free(u);
}

bool fkv_unzstd_is_between(const fkv_unzstd *u)
{
    return !u->inside;
}

bool fkv_unzstd_step(fkv_unzstd *u, const uint8_t *in, size_t n_in, size_t *taken, uint8_t *out, size_t n_out,
                     size_t *given, fkv_fault *fault)
{
    ZSTD_inBuffer from = {in, n_in, 0};
    ZSTD_outBuffer to = {out, n_out, 0};
    *taken = *given = 0;
    if (!u->inside && !check_window(u, in, n_in, fault)) return false;
    const size_t rc = ZSTD_decompressStream(u->decoder, &to, &from);
    *taken = from.pos;
    *given = to.pos;
    if (ZSTD_isError(rc)) {
        const bool memory = ZSTD_getErrorCode(rc) == ZSTD_error_memory_allocation;
        fkv_fault_set(fault, memory ? ENOMEM : 0, "zstd: %s", ZSTD_getErrorName(rc));
        return false;
    }
    u->inside = rc != 0;
    return true;
}
