/* The command line: finds the subcommand. Only this file ends the process. */
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/engine.h"
#include "jobs/job.h"
#include "runner/base/log.h"
#include "runner/base/nearest.h"
#include "runner/commands.h"

typedef struct command {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help;
} command;

static const command commands[] = {
    {"run", fkv_cmd_run, "JOB.ini [-s section.key=value]...   profile, plan, stream, report"},
    {"check", fkv_cmd_check, "JOB.ini [-s ...] [--json]   validate everything; print what a run would do"},
    {"plan", fkv_cmd_plan,
     "JOB.ini [-s ...] [--svg FILE]   write profile.json and plan.json; explain the plan"},
    {"compare", fkv_cmd_compare,
     "JOB.ini [-s ...] [--records N] [--budgets LIST]   what budgets cost in answers, and save"},
    {"init", fkv_cmd_init, "MODEL_DIR ARCHIVE [-o FILE]   a commented job file for what it finds there"},
    {"export", fkv_cmd_export, "OUTPUT_DIR --format longbench|ruler|openai|jsonl [--partial] DEST|-"},
    {"status", fkv_cmd_status,
     "OUTPUT_DIR [--json]   how far it is, errors by code, who is at work; reads only"},
    {"report", fkv_cmd_report,
     "OUTPUT_DIR [-o FILE|-]   writes its report.html: one page about all its runs"},
    {"tokenize", fkv_cmd_tokenize, "MODEL_DIR [--decode] [--json] [--bos]   stdin to stdout, line by line"},
    {"template", fkv_cmd_template,
     "MODEL_DIR|FILE [--date D]   chat template: JSON lines of messages to text, line by line"},
};

static void print_help(FILE *out)
{
    fputs("fairkv-batch: batch inference over prompt archives, with fair per-head KV compression\n\nusage:\n",
          out);
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        fprintf(out, "  fairkv-batch %-8s %s\n", commands[i].name, commands[i].help);
    fputs("  fairkv-batch help     COMMAND|keys   more of a command; every key of a job file\n", out);
    fputs(
        "\nexit codes: 0 all records done; 1 done, some records failed; 2 the command line, the job or its\n"
        "input is wrong; 3 system error; 4 device error; 75 try again later: interrupted (run it again to\n"
        "resume), or another run holds the output\n",
        out);
}

/* --version, of the program or behind a subcommand. */
static bool asks_version(int argc, char **argv)
{
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (!strcmp(argv[i], "--version")) return true;
    return false;
}

/* Large blocks go back to the system when they are freed. By default glibc keeps
 * blocks of every size that it has once seen freed, such as an archive decoder's
 * window, so that peak memory would depend on the order of sizes in the input. */
static void bound_malloc(void)
{
#ifdef M_MMAP_THRESHOLD
    mallopt(M_MMAP_THRESHOLD, 128 * 1024);
#endif
}

/* Standard streams that the caller closed would be the numbers of the next files that are
 * opened, and messages would end up in the journal. */
static void keep_standard_streams(void)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0 && errno == EBADF && open("/dev/null", O_RDWR) < 0) return;
}

/* A file that would grow beyond "ulimit -f" is then an error that names it. */
static void heed_file_limit(void)
{
    signal(SIGXFSZ, SIG_IGN);
}

/* What a report of a problem should say: the program is only as good as what it was built from. */
static void print_version(void)
{
    char libc[64] = "an unknown libc";
    confstr(_CS_GNU_LIBC_VERSION, libc, sizeof libc);
    printf("fairkv-batch %s, backends: %s\nbuilt with %s; runs with %s\n", FKV_VERSION, fkv_backend_names(),
           FKV_BUILT_WITH, libc);
}

static bool ended;

/* exit() is main's alone. libarchive calls it too, with 1, when it finds no memory. */
static void refuse_exit(void)
{
    if (ended) return;
    fkv_log_at(FKV_LOG_ERROR, "a library gave up, most likely for want of memory; run it again to resume");
    _exit(fkv_exit_code(FKV_E_SYSTEM));
}

static const command *find_command(const char *name)
{
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (!strcmp(name, commands[i].name)) return &commands[i];
    return NULL;
}

/* What is neither a subcommand nor the other word that may stand there. */
static int refuse_word(const char *what, const char *word, const char *other)
{
    fkv_err err = {0};
    fkv_nearest near = {.word = word};
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) fkv_nearest_try(&near, commands[i].name);
    fkv_nearest_try(&near, other);
    fkv_fail(&err, FKV_E_INPUT, "no %s '%s'%s%s%s", what, word, near.best ? "; did you mean " : "",
             near.best ? near.best : "", near.best ? "?" : "");
    const int code = fkv_command_end(err.status, &err);
    fputs("\n", stderr);
    print_help(stderr);
    return code;
}

static int print_keys(void)
{
    fkv_buf text = {0};
    fkv_err err = {0};
    const fkv_status st = fkv_job_write_help(&text, &err);
    if (!st) fputs(text.data, stdout);
    fkv_buf_free(&text);
    return fkv_command_end(st, &err);
}

/* argv[0] is "help". */
static int help(int argc, char **argv)
{
    char option[] = "--help";
    const char *topic = argc > 1 ? argv[1] : "help";
    const command *c = find_command(topic);
    if (!strcmp(topic, "keys")) return print_keys();
    if (c) return c->run(2, (char *[]){argv[1], option, NULL});
    if (strcmp(topic, "help") != 0 && strcmp(topic, "--help") != 0 && strcmp(topic, "-h") != 0)
        return refuse_word("subcommand or topic", topic, "keys");
    print_help(stdout);
    return 0;
}

static int run_command(int argc, char **argv)
{
    if (argc >= 2 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))) {
        print_help(stdout);
        return 0;
    }
    if (asks_version(argc, argv)) {
        print_version();
        return 0;
    }
    const command *c = argc >= 2 ? find_command(argv[1]) : NULL;
    if (c) return c->run(argc - 1, argv + 1);
    if (argc >= 2 && !strcmp(argv[1], "help")) return help(argc - 1, argv + 1);
    if (argc >= 2) return refuse_word("subcommand", argv[1], "help");
    print_help(stderr);
    return fkv_exit_code(FKV_E_INPUT);
}

int main(int argc, char **argv)
{
    keep_standard_streams();
    heed_file_limit();
    bound_malloc();
    atexit(refuse_exit);
    int code = run_command(argc, argv);
    if ((fflush(stdout) || ferror(stdout)) && code == 0) {
        fprintf(stderr, "fairkv-batch: writing standard output: %s\n", strerror(errno));
        code = fkv_exit_code(FKV_E_SYSTEM);
    }
    ended = true;
    return code;
}
