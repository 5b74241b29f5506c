/* Sources of bytes: see source.h. */
#include "jobs/source.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "runner/base/status.h"
#include "runner/base/utf8.h"

ssize_t fkv_fault_set(fkv_fault *fault, int number, const char *fmt, ...)
{
    static const char more[] = "...";
    const size_t most = sizeof fault->why - sizeof more;
    char text[512];
    fkv_buf clean = {0};
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    fault->number = number;
    /* Libraries put names of members and other bytes of the input into what they say. */
    const bool whole = fkv_utf8_append_clean(&clean, text, strlen(text), NULL) == FKV_OK && clean.len;
    const char *why = whole ? clean.data : number ? strerror(number) : "damaged";
    size_t n = strlen(why);
    if (n < sizeof fault->why) {
        memcpy(fault->why, why, n + 1);
    } else {
        n = most;
        while (n && why[n] != ' ') n--;
        if (!n) n = fkv_utf8_span(why, most); /* one word: between two characters */
        memcpy(fault->why, why, n);
        memcpy(fault->why + n, more, sizeof more);
    }
    fkv_buf_free(&clean);
    return -1;
}

/* libarchive and its filters don't always say that they found no memory. What they call
 * damage is believed where they can have had enough. Most of that is mapped, not
 * allocated: an archive may be damaged a thousand times, and sanitizers fill what is. */
static bool memory_is_short(void)
{
    const size_t enough = (size_t)256 << 20;
    void *volatile small = malloc(4096); /* or the compiler leaves it out */
    void *large = mmap(NULL, enough, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    const bool is_short = !small || large == MAP_FAILED;
    if (large != MAP_FAILED) munmap(large, enough);
    free(small);
    return is_short;
}

bool fkv_fault_is_system(const fkv_fault *fault)
{
    return fkv_errno_is_system(fault->number) || memory_is_short();
}

bool fkv_watch_ends(const fkv_watch *watch, fkv_fault *fault)
{
    if (!watch->stop || !watch->stop(watch->ctx)) return false;
    fkv_fault_set(fault, EINTR, "%s", strerror(EINTR));
    return true;
}

ssize_t fkv_file_source_read(void *ctx, const void **bytes, fkv_fault *fault)
{
    fkv_file_source *s = ctx;
    ssize_t n;
    if (fkv_watch_ends(s->watch, fault)) return -1;
    /* By the descriptor's own position, which tells others how far a run has read. */
    if (lseek(s->fd, (off_t)s->at, SEEK_SET) < 0) return fkv_fault_set(fault, errno, "%s", strerror(errno));
    do {
        n = read(s->fd, s->block, s->n_block);
    } while (n < 0 && errno == EINTR);
    if (n < 0) return fkv_fault_set(fault, errno, "%s", strerror(errno));
    s->at += n;
    *bytes = s->block;
    return n;
}

size_t fkv_peek_look(fkv_peek *p)
{
    const void *bytes;
    ssize_t n;
    if (p->looked) return p->n_head;
    p->looked = true;
    while (p->n_head < sizeof p->head && (n = p->from.read(p->from.ctx, &bytes, &p->fault)) != 0) {
        if (n < 0) {
            p->failed = true;
            break;
        }
        const size_t room = sizeof p->head - p->n_head;
        const size_t took = (size_t)n < room ? (size_t)n : room;
        memcpy(p->head + p->n_head, bytes, took);
        p->n_head += took;
        p->rest = (const uint8_t *)bytes + took;
        p->n_rest = (size_t)n - took;
    }
    return p->n_head;
}

ssize_t fkv_peek_read(void *ctx, const void **bytes, fkv_fault *fault)
{
    fkv_peek *p = ctx;
    fkv_peek_look(p);
    if (!p->given && p->n_head) {
        p->given = true;
        *bytes = p->head;
        return (ssize_t)p->n_head;
    }
    if (p->failed) {
        *fault = p->fault;
        return -1;
    }
    if (p->n_rest) {
        const size_t n = p->n_rest;
        p->n_rest = 0;
        *bytes = p->rest;
        return (ssize_t)n;
    }
    return p->from.read(p->from.ctx, bytes, fault);
}
