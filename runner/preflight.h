/* What a run would refuse, found before anything heavy starts.
 *
 * run, plan and check all begin here, so that they refuse the same jobs with the same
 * words: the job file, the output folder, the model, the templates, the beginning of every
 * archive, the earlier run's manifest, journal, profile and plan, and the memory. Nothing
 * is written. All mistakes are reported together, those of the job file and of what it names. Nothing is
 * owned. Not for what only the work shows, a damaged archive behind its first record or a full disk.
 */
#ifndef FKV_RUNNER_PREFLIGHT_H
#define FKV_RUNNER_PREFLIGHT_H

#include "jobs/output.h"
#include "runner/setup.h"
#include "runner/sizing.h"

/* Of an archive, decompressed, before the first record that is wanted. */
#define FKV_PREFLIGHT_BYTES ((int64_t)256 << 20)

typedef struct fkv_preflight {
    fkv_output_totals output; /* what earlier runs left */
    fkv_sizing sizing;        /* of the machine, for the job's layout; points into the setup */
} fkv_preflight;

/* Parses argv (setup.h), opens the job and verifies it. Prints every error. Returns -1 to go
 * on, else the exit code to leave with. The setup is to be closed in either case. */
int fkv_preflight_open(int argc, char **argv, const char *usage, fkv_setup *setup, fkv_preflight *found);
/* The same for who leaves the job's output folder alone: it is not looked at, and may be another job's. */
int fkv_preflight_open_apart(int argc, char **argv, const char *usage, fkv_setup *setup,
                             fkv_preflight *found);

#endif
