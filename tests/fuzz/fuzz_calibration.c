/* Calibration files from anywhere: the reader refuses one, naming the file, or gives
 * constants that a plan can be made with and that read back the same. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/measure/calibrate.h"
#include "runner/base/file.h"
#include "tests/fuzz/json_mutator.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(int ok, const char *what)
{
    if (ok) return;
    fprintf(stderr, "%s\n", what);
    abort();
}

static void check_round_trip(const fkv_calibration *c)
{
    static char dir[] = "/tmp/fuzz-calibration-XXXXXX", path[64];
    fkv_calibration back;
    fkv_err err = {0};
    must(mkdtemp(dir) != NULL, "no folder");
    snprintf(path, sizeof path, "%s/c.json", dir);
    must(!fkv_calibration_write(c, path, &err), err.message);
    must(!fkv_calibration_read(path, &back, &err), err.message);
    must(!memcmp(c, &back, sizeof back), "a field changed");
    unlink(path);
    rmdir(dir);
    memcpy(dir + sizeof dir - 7, "XXXXXX", 7);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int fd = -1;
    static char path[64];
    static unsigned n_read;
    fkv_calibration c;
    fkv_err err = {0};
    if (fd < 0) {
        fd = memfd_create("calibration.json", 0);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    must(ftruncate(fd, 0) == 0 && pwrite(fd, data, size, 0) == (ssize_t)size, "cannot fill the file");
    if (fkv_calibration_read(path, &c, &err)) {
        must(err.status == FKV_E_INPUT && !strcmp(err.file, path) && err.message[0],
             "an error without its place");
        return 0;
    }
    const double us[] = {c.cost.t0_us,     c.cost.head_us,          c.cost.slot_head_us,    c.cost.token_us,
                         c.cost.common_us, c.cost.prefill_token_us, c.cost.prefill_pair_us, c.fit_error};
    for (size_t i = 0; i < sizeof us / sizeof *us; i++) must(isfinite(us[i]) && us[i] >= 0, "a time");
    must(c.key.n_slots > 0 && c.key.n_ranks > 0 && c.key.hidden > 0, "a size");
    /* Writing syncs the disk: every file of a corpus, then one in a thousand. */
    if (n_read++ < 64 || n_read % 1024 == 0) check_round_trip(&c);
    return 0;
}
