/* The subcommands, one file each (cmd_*.c). Each gets its own name as argv[0] and returns the exit code;
 * what it opened is closed by then, and what went wrong is printed. Not for what the words on the command
 * line before it mean (main.c). */
#ifndef FKV_RUNNER_COMMANDS_H
#define FKV_RUNNER_COMMANDS_H

#include "runner/base/status.h"

int fkv_cmd_run(int argc, char **argv);
int fkv_cmd_check(int argc, char **argv);
int fkv_cmd_plan(int argc, char **argv);
int fkv_cmd_compare(int argc, char **argv);
int fkv_cmd_export(int argc, char **argv);
int fkv_cmd_report(int argc, char **argv);
int fkv_cmd_status(int argc, char **argv);
int fkv_cmd_tokenize(int argc, char **argv);
int fkv_cmd_template(int argc, char **argv);
int fkv_cmd_init(int argc, char **argv);

/* For those that answer on standard output and keep no log: says on standard error what went wrong,
 * behind the output so far. Returns the exit code. */
int fkv_command_end(fkv_status st, const fkv_err *err);
/* The same of a wrong command line, with the usage behind it. */
int fkv_command_misused(const fkv_err *err, const char *usage);

/* The error of an option that the subcommand has not, or without its value, with the nearest one that
 * its usage names. */
fkv_status fkv_command_bad_option(const char *command, const char *option, const char *usage, fkv_err *err);
/* An option that a subcommand has beside those of every job: one with a value, or one without. */
typedef struct fkv_command_own {
    const char *name;
    const char **value; /* NULL: it has none, and given is set */
    bool *given;
} fkv_command_own;
/* Takes own[n] out of the words, as "--name VALUE" or "--name=VALUE"; each may stand there once. */
fkv_status fkv_command_take(const char *command, const char *usage, const fkv_command_own *own, size_t n,
                            int *argc, char **argv, fkv_err *err);
/* Of a subcommand that has -o FILE and --help alone: *first is the first of the words that are left. */
fkv_status fkv_command_file_option(const char *command, const char *usage, int argc, char **argv,
                                   const char **file, bool *help, int *first, fkv_err *err);
/* The option that getopt_long minds: of argv, or of the letters of one word. */
const char *fkv_command_option(char **argv, char letter[3]);

#endif
