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

int fkv_command_misused(const fkv_err *err, const char *usage)
{
    const int code = fkv_command_end(err->status, err);
    fputs(usage, stderr);
    return code;
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

/* How many words the option at argv[i] takes, and its value; 0: it is another one, -1: it has no value where
 * it wants one, or one where it doesn't. */
static int words_of(const fkv_command_own *own, int argc, char **argv, int i, const char **value)
{
    const size_t n = strlen(own->name);
    const bool joined = !strncmp(argv[i], own->name, n) && argv[i][n] == '=';
    if (!joined && strcmp(argv[i], own->name) != 0) return 0;
    if (!own->value) return joined ? -1 : 1;
    *value = joined ? argv[i] + n + 1 : i + 1 < argc ? argv[i + 1] : "";
    return **value ? 2 - joined : -1;
}

static fkv_status take_one(const char *command, const fkv_command_own *own, const char *value, fkv_err *err)
{
    if (own->value ? *own->value != NULL : *own->given)
        return fkv_fail(err, FKV_E_INPUT, "%s: %s is there twice", command, own->name);
    if (own->value)
        *own->value = value;
    else
        *own->given = true;
    return FKV_OK;
}

fkv_status fkv_command_take(const char *command, const char *usage, const fkv_command_own *own, size_t n,
                            int *argc, char **argv, fkv_err *err)
{
    int left = 0;
    for (int i = 0; i < *argc; i++) {
        const char *value = NULL;
        size_t k = 0;
        int words = 0;
        while (k < n && !(words = words_of(&own[k], *argc, argv, i, &value))) k++;
        if (words < 0) return fkv_command_bad_option(command, argv[i], usage, err);
        if (words) {
            const fkv_status st = take_one(command, &own[k], value, err);
            if (st) return st;
            i += words - 1;
            continue;
        }
        const bool setting = !strcmp(argv[i], "-s") && i + 1 < *argc;
        argv[left++] = argv[i];
        if (setting) argv[left++] = argv[++i];
    }
    *argc = left;
    return FKV_OK;
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
