/* For LD_PRELOAD: malloc and its kin fail from the FAIL_AT-th call on (1: the first), FAIL_FOR
 * times (0: for ever). The number of calls is written to the file FAIL_COUNT at exit. */
#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);
void *__libc_memalign(size_t alignment, size_t n);

static atomic_long calls;
static long fail_at, fail_for;
static bool armed;

__attribute__((constructor)) static void arm(void)
{
    const char *at = getenv("FAIL_AT"), *times = getenv("FAIL_FOR");
    fail_at = at ? atol(at) : 0;
    fail_for = times ? atol(times) : 0;
    armed = true;
}

__attribute__((destructor)) static void tell(void)
{
    const char *path = getenv("FAIL_COUNT");
    const long n = atomic_load(&calls);
    armed = false;
    FILE *f = path ? fopen(path, "w") : NULL;
    if (f) fprintf(f, "%ld\n", n);
    if (f) fclose(f);
}

static bool fails(void)
{
    if (!armed) return false;
    const long n = atomic_fetch_add(&calls, 1) + 1;
    if (!fail_at || n < fail_at || (fail_for && n >= fail_at + fail_for)) return false;
    errno = ENOMEM;
    return true;
}

void *malloc(size_t n)
{
    return fails() ? NULL : __libc_malloc(n);
}

void *calloc(size_t n, size_t size)
{
    return fails() ? NULL : __libc_calloc(n, size);
}

void *realloc(void *p, size_t n)
{
    return fails() ? NULL : __libc_realloc(p, n);
}

void *aligned_alloc(size_t alignment, size_t n)
{
    return fails() ? NULL : __libc_memalign(alignment, n);
}

int posix_memalign(void **out, size_t alignment, size_t n)
{
    void *p = fails() ? NULL : __libc_memalign(alignment, n);
    if (p) *out = p;
    return p ? 0 : ENOMEM;
}
