/* A hook for tests: see hold.h. */
#include "runner/hold.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "runner/interrupt.h"

/* The file of a hold at this place; NULL: there is none. */
static const char *file_of(const char *stage, int64_t n)
{
    const char *where = getenv("FAIRKV_TEST_HOLD");
    char name[16];
    long long count;
    int path = 0;
    if (!where || sscanf(where, "%15s %lld %n", name, &count, &path) != 2 || !path) return NULL;
    return strcmp(name, stage) == 0 && count == n ? where + path : NULL;
}

void fkv_hold(const char *stage, int64_t n, bool (*over)(void *ctx), void *ctx)
{
    const struct timespec pause = {0, 2L * 1000 * 1000};
    const char *path = file_of(stage, n);
    if (!path) return;
    const int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0) return;
    close(fd);
    if (!over) over = fkv_interrupt_asks;
    while (!over(ctx) && access(path, F_OK) == 0) nanosleep(&pause, NULL);
}
