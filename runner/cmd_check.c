/* fairkv-batch check: validates everything and prints what a run would do. */
#include <stdio.h>
#include <string.h>

#include "runner/base/utf8.h"
#include "runner/commands.h"
#include "runner/preflight.h"

static const char usage[] =
    "usage: fairkv-batch check JOB.ini [-s section.key=value]...\n"
    "Refuses what run would refuse, with the same words, and prints what a run would do. Writes nothing.\n";

/* The archives' lines as comments of the job file above them. */
static void print_input(const fkv_setup *s, const fkv_preflight *found)
{
    printf("\n; %zu input files; prompts of up to %lld tokens\n", s->job->input.n_files,
           (long long)fkv_prompt_limit(&s->limits, s->limits.max_new));
    for (const char *line = found->input.data; line && *line;) {
        const int n = (int)strcspn(line, "\n");
        char said[4096], shown[2 * sizeof said];
        snprintf(said, sizeof said, "%.*s", n, line);
        fkv_utf8_show(said, shown, sizeof shown);
        printf("; %s\n", shown);
        line += n;
        line += *line == '\n';
    }
}

static void print_machine(const fkv_setup *s)
{
    const fkv_config *c = &s->config;
    char ranks[32] = "the plan chooses the ranks", slots[32] = "the plan chooses the slots";
    printf("; model: %d layers, %d query and %d KV heads of %d, hidden %d, vocabulary %d, %.1f MiB "
           "of weights\n",
           c->n_layers, c->n_heads, c->n_kv_heads, c->head_dim, c->hidden, c->vocab,
           (double)fkv_engine_weight_bytes(c, 4) / (1 << 20));
    if (!s->auto_ranks) snprintf(ranks, sizeof ranks, "%d ranks", s->n_ranks);
    if (!s->auto_slots) snprintf(slots, sizeof slots, "%d slots", s->n_slots);
    printf("; backend %s: %s on %d devices, %s; %d host threads a device\n", s->backend->name, ranks,
           s->n_devices, slots, fkv_setup_threads(s));
}

static void print_output(const fkv_output_totals *t)
{
    if (!t->records && !t->complete) return;
    printf("; output: %lld records are done, %lld of them errors%s\n", (long long)t->records,
           (long long)t->errors, t->complete ? "; a run would have nothing to do" : "");
}

int fkv_cmd_check(int argc, char **argv)
{
    fkv_setup setup;
    fkv_preflight found;
    fkv_buf ini = {0};
    fkv_err err = {0};
    int code = fkv_preflight_open(argc, argv, usage, &setup, &found);
    if (code < 0) {
        code = fkv_job_write_ini(setup.job, &ini, &err) ? fkv_report_error(&err) : 0;
        if (!code) {
            fputs(ini.data, stdout);
            print_input(&setup, &found);
            print_machine(&setup);
            print_output(&found.output);
        }
        fkv_buf_free(&ini);
    }
    fkv_preflight_close(&found);
    fkv_setup_close(&setup);
    return code;
}
