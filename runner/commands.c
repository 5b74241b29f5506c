/* How subcommands end: see commands.h. */
#include "runner/commands.h"

#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "runner/base/nearest.h"
#include "runner/base/utf8.h"

int fkv_command_end(fkv_status st, const fkv_err *err)
{
    char text[2048], line[2 * sizeof text];
    if (!fkv_exit_code(st)) return 0;
    fflush(stdout); /* what came before it */
    fkv_err_format(err, text, sizeof text);
    fkv_utf8_show(text, line, sizeof line);
    fprintf(stderr, "fairkv-batch: %s\n", line);
    return fkv_exit_code(st);
}

fkv_status fkv_command_bad_option(const char *command, const char *option, const char *usage, fkv_err *err)
{
    static const char ends[] = " \n[]|,.";
    char word[64], known[64], best[64] = "";
    snprintf(word, sizeof word, "%.*s", (int)strcspn(option, "="), option);
    fkv_nearest near = {.word = word};
    for (const char *p = usage; *p;) {
        const size_t n = strcspn(p, ends);
        if (*p == '-' && n > 1 && n < sizeof known) {
            snprintf(known, sizeof known, "%.*s", (int)n, p);
            if (!strcmp(known, word))
                return fkv_fail(err, FKV_E_INPUT, "%s: %s: its value is missing, or it takes none", command,
                                word);
            const size_t before = near.best ? near.distance : sizeof word;
            fkv_nearest_try(&near, known);
            if (near.best && near.distance < before) snprintf(best, sizeof best, "%s", known);
            if (near.best) near.best = best;
        }
        p += n + (p[n] != '\0');
    }
    return fkv_fail(err, FKV_E_INPUT, "%s: unknown option %s%s%s%s help %s", command, option,
                    near.best ? "; did you mean " : "", near.best ? near.best : "",
                    near.best ? "? See fairkv-batch" : "; see fairkv-batch", command);
}

const char *fkv_command_option(char **argv, char letter[3])
{
    const char *word = argv[optind - 1];
    if (!optopt || !strncmp(word, "--", 2)) return word;
    snprintf(letter, 3, "-%c", optopt);
    return letter;
}

fkv_status fkv_command_file_option(const char *command, const char *usage, int argc, char **argv,
                                   const char **file, bool *help, int *first, fkv_err *err)
{
    static const struct option known[] = {{"help", no_argument, NULL, 'h'}, {0}};
    char letter[3];
    optind = 0; /* glibc: start anew, main may have parsed before */
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, "ho:", known, NULL)) != -1;) {
        if (c == 'o') *file = optarg;
        if (c == 'h') *help = true;
        if (c == '?') return fkv_command_bad_option(command, fkv_command_option(argv, letter), usage, err);
    }
    *first = optind;
    return FKV_OK;
}
