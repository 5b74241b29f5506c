/* fairkv-batch check: validates everything and prints what a run would do. */
#include <stdio.h>

#include "runner/commands.h"
#include "runner/setup.h"

static const char usage[] = "usage: fairkv-batch check JOB.ini [-s section.key=value]...\n"
                            "Validates the job, its inputs and the model, and prints what a run would do.\n";

int fkv_cmd_check(int argc, char **argv)
{
    fkv_setup setup;
    fkv_buf ini = {0};
    fkv_err err = {0};
    int code = fkv_setup_open(argc, argv, usage, false, &setup);
    if (code < 0) {
        const fkv_config *c = &setup.config;
        code = 0;
        if (fkv_job_write_ini(setup.job, &ini, &err)) code = fkv_report_error(&err);
        if (!code) {
            fputs(ini.data, stdout);
            printf("\n; %zu input files; prompts of up to %lld tokens\n", setup.job->input.n_files,
                   (long long)fkv_prompt_limit(&setup.limits, setup.limits.max_new));
            printf("; model: %d layers, %d query and %d KV heads of %d, hidden %d, vocabulary %d, %.1f MiB "
                   "of weights\n",
                   c->n_layers, c->n_heads, c->n_kv_heads, c->head_dim, c->hidden, c->vocab,
                   (double)fkv_engine_weight_bytes(c, 4) / (1 << 20));
            char ranks[32] = "the plan chooses the ranks", slots[32] = "the plan chooses the slots";
            if (!setup.auto_ranks) snprintf(ranks, sizeof ranks, "%d ranks", setup.n_ranks);
            if (!setup.auto_slots) snprintf(slots, sizeof slots, "%d slots", setup.n_slots);
            printf("; backend %s: %s on %d devices, %s\n", setup.backend->name, ranks, setup.n_devices,
                   slots);
        }
        fkv_buf_free(&ini);
    }
    fkv_setup_close(&setup);
    return code;
}
