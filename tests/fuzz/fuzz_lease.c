/* A lease file of any bytes: what is taken for a holder can be shown and asked for, and nothing else is. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jobs/lease.h"
#include "tests/fuzz/json_mutator.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool ok, const char *what)
{
    if (ok) return;
    fprintf(stderr, "%s\n", what);
    abort();
}

static void check_text(const char *text, size_t size, const char *what)
{
    check(memchr(text, '\0', size) != NULL, what);
    for (; *text; text++) check(*text > ' ' && *text < 0x7f, what);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const fkv_lease_holder none;
    fkv_lease_holder h;
    if (!fkv_lease_parse((const char *)data, size, &h)) {
        check(memcmp(&h, &none, sizeof h) == 0, "a holder of nothing");
        return 0;
    }
    check_text(h.host, sizeof h.host, "host");
    check_text(h.boot, sizeof h.boot, "boot");
    check_text(h.uuid, sizeof h.uuid, "uuid");
    check(strlen(h.uuid) == sizeof h.uuid - 1, "a short uuid");
    check(h.pid >= 1 && h.pid <= INT32_MAX && h.pids >= 0 && h.start >= 0, "numbers");
    return 0;
}
