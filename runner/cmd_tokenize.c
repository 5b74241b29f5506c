/* The tokenize subcommand: see commands.h. Text lines in, lines of ids out, and
 * back. Holds one line at a time, so input of any length passes in bounded
 * memory. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runner/base/buf.h"
#include "runner/base/json.h"
#include "runner/base/utf8.h"
#include "runner/commands.h"
#include "runner/line.h"
#include "tokenizer/tokenizer.h"

static const char usage[] =
    "Usage: fairkv-batch tokenize MODEL_DIR [--decode] [--json] [--bos]\n"
    "\n"
    "Reads lines of text and writes a line of token ids for each, or the reverse.\n"
    "Needs only MODEL_DIR/tokenizer.json; what HF transformers takes from config.json,\n"
    "tokenizer_config.json and special_tokens_map.json beside it counts too. Special tokens written in the "
    "text are\n"
    "recognised.\n"
    "\n"
    "  --json    text lines are JSON strings, so a text may contain line breaks\n"
    "  --bos     adds the tokens that the model expects around a text (BOS)\n"
    "  --decode  reads ids and writes their text, special tokens included\n"
    "  --help    shows this\n"
    "\n"
    "Exit codes: 0 done; 2 the command line, the tokenizer or a line is wrong;\n"
    "3 a system error.\n";

struct job {
    fkv_tokenizer *tokenizer;
    fkv_tokenizer_scratch *scratch;
    bool decode, json, bos;
    fkv_buf line, out;
    fkv_ids ids;
};

static fkv_status encode_line(struct job *j, fkv_err *err)
{
    const char *text = j->line.data;
    size_t n = j->line.len;
    json_t *value = NULL;
    fkv_status st = FKV_OK;
    if (j->json) {
        json_error_t why;
        const size_t mark = fkv_utf8_mark(text, n);
        value = fkv_json_parse(text + mark, n - mark, JSON_DECODE_ANY | JSON_ALLOW_NUL, &why);
        if (!value && json_error_code(&why) == json_error_out_of_memory) {
            st = fkv_fail_memory(err);
            goto out;
        }
        if (!json_is_string(value)) {
            st = value ? fkv_fail(err, FKV_E_INPUT, "not a JSON string")
                       : fkv_fail(err, FKV_E_INPUT, "not a JSON string: %s", why.text);
            goto out;
        }
        text = json_string_value(value);
        n = json_string_length(value);
    }
    st = fkv_tokenizer_encode(j->tokenizer, j->scratch, text, n, j->bos, &j->ids, NULL, NULL, err);
    if (st) goto out;
    for (size_t i = 0; !st && i < j->ids.len; i++) {
        char id[16];
        const int len = snprintf(id, sizeof id, i ? " %d" : "%d", (int)j->ids.data[i]);
        st = fkv_buf_append(&j->out, id, (size_t)len, err);
    }
out:
    json_decref(value);
    return st;
}

/* Reads the ids of a line, separated by spaces, into j->ids. */
static fkv_status parse_ids(struct job *j, fkv_err *err)
{
    const char *s = j->line.data;
    j->ids.len = 0;
    if (strlen(s) != j->line.len) return fkv_fail(err, FKV_E_INPUT, "not a list of ids");
    for (;;) {
        s += strspn(s, " \t\r");
        if (!*s) return FKV_OK;
        const size_t n_word = strcspn(s, " \t\r"), n_digits = strspn(s, "0123456789");
        char *end;
        errno = 0;
        const long id = strtol(s, &end, 10);
        if (n_digits != n_word || errno || id > INT32_MAX)
            return fkv_fail(err, FKV_E_INPUT, "'%.*s' is not an id", n_word < 40 ? (int)n_word : 40, s);
        fkv_status st = fkv_ids_push(&j->ids, (int32_t)id, err);
        if (st) return st;
        s = end;
    }
}

static fkv_status decode_line(struct job *j, fkv_err *err)
{
    fkv_buf text = {0};
    fkv_status st = parse_ids(j, err);
    if (!st)
        st = fkv_tokenizer_decode(j->tokenizer, j->ids.data, j->ids.len, false, j->json ? &text : &j->out,
                                  err);
    if (!st && j->json) st = fkv_json_put_string(&j->out, text.len ? text.data : "", text.len, err);
    fkv_buf_free(&text);
    return st;
}

static fkv_status run_lines(struct job *j, fkv_err *err)
{
    for (int64_t line = 1;; line++) {
        fkv_status st = fkv_line_read(stdin, &j->line, err);
        if (st == FKV_END) break;
        fkv_buf_clear(&j->out);
        if (!st) st = j->decode ? decode_line(j, err) : encode_line(j, err);
        if (!st) st = fkv_buf_append(&j->out, "\n", 1, err);
        if (st) {
            if (!err->file[0]) snprintf(err->file, sizeof err->file, "standard input");
            if (!err->line) err->line = line;
            return st;
        }
        if (fwrite(j->out.data, 1, j->out.len, stdout) != j->out.len)
            return fkv_fail_errno(err, NULL, "writing standard output");
    }
    return fflush(stdout) ? fkv_fail_errno(err, NULL, "writing standard output") : FKV_OK;
}

/* Fills j's options and *dir; FKV_END when the usage was asked for. */
static fkv_status read_options(int argc, char **argv, struct job *j, const char **dir, fkv_err *err)
{
    static const struct option options[] = {{"decode", no_argument, NULL, 'd'},
                                            {"json", no_argument, NULL, 'j'},
                                            {"bos", no_argument, NULL, 'b'},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    char letter[3];
    optind = 0; /* glibc: start anew, main may have parsed before */
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
        switch (c) {
        case 'd': j->decode = true; break;
        case 'j': j->json = true; break;
        case 'b': j->bos = true; break;
        case 'h': return FKV_END;
        default: return fkv_command_bad_option("tokenize", fkv_command_option(argv, letter), usage, err);
        }
    }
    if (argc - optind != 1)
        return fkv_fail(err, FKV_E_INPUT, "tokenize: give one MODEL_DIR (see fairkv-batch tokenize --help)");
    if (j->decode && j->bos)
        return fkv_fail(err, FKV_E_INPUT, "tokenize: --bos and --decode exclude each other");
    *dir = argv[optind];
    return FKV_OK;
}

int fkv_cmd_tokenize(int argc, char **argv)
{
    fkv_err err = {0};
    struct job j = {0};
    const char *dir = NULL;
    fkv_status st = read_options(argc, argv, &j, &dir, &err);
    if (st == FKV_END) {
        fputs(usage, stdout);
        goto out;
    }
    if (!st) st = fkv_tokenizer_open(dir, &j.tokenizer, &err);
    if (!st) st = fkv_tokenizer_scratch_new(j.tokenizer, &j.scratch, &err);
    if (!st) st = run_lines(&j, &err);
out:
    fkv_ids_free(&j.ids);
    fkv_buf_free(&j.out);
    fkv_buf_free(&j.line);
    fkv_tokenizer_scratch_free(j.scratch);
    fkv_tokenizer_close(j.tokenizer);
    return fkv_command_end(st, &err);
}
