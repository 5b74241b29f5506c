/* The template subcommand: see commands.h. JSON lines of messages in, their text by the chat
 * template out, a JSON string a line. Holds one line at a time. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "runner/base/buf.h"
#include "runner/base/json.h"
#include "runner/base/utf8.h"
#include "runner/commands.h"
#include "runner/line.h"
#include "tokenizer/template.h"

static const char usage[] =
    "Usage: fairkv-batch template MODEL_DIR|FILE [--date D]\n"
    "\n"
    "Reads JSON lines and writes for each the text that the chat template makes of it,\n"
    "as a JSON string, or {\"error\":\"...\"} where the template makes none. A line is\n"
    "\n"
    "  {\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}],\n"
    "   \"add_generation_prompt\":true,\"variables\":{\"enable_thinking\":false}}\n"
    "\n"
    "of which messages is required. MODEL_DIR has chat_template.jinja, or a template in\n"
    "tokenizer_config.json, with its special tokens; FILE is a template, to which\n"
    "bos_token and the like come as variables.\n"
    "\n"
    "  --date D  the day that strftime_now gives, such as 2024-07-26 (today, UTC)\n"
    "  --help    shows this\n"
    "\n"
    "Exit codes: 0 done; 2 the command line, the template or a line is wrong; 3 a system\n"
    "error.\n";

struct job {
    fkv_template *template;
    fkv_template_scratch *scratch;
    char today[16];
    const char *date;
    fkv_buf line, text, out;
};

static fkv_status put_error(struct job *j, const fkv_err *why, fkv_err *err)
{
    char text[1536];
    fkv_err_format(why, text, sizeof text);
    fkv_buf_clear(&j->text);
    fkv_status st = fkv_utf8_append_clean(&j->text, text, strlen(text), err);
    if (!st) st = fkv_buf_puts(&j->out, "{\"error\":", err);
    if (!st) st = fkv_json_put_string(&j->out, j->text.data, j->text.len, err);
    return st ? st : fkv_buf_puts(&j->out, "}\n", err);
}

/* A rendering that fails is a line of its own; a line that is no request ends the run. */
static fkv_status render(struct job *j, const json_t *request, fkv_err *err)
{
    const json_t *prompt = json_object_get(request, "add_generation_prompt");
    const json_t *variables = json_object_get(request, "variables");
    fkv_err why = {0};
    if (!json_is_object(request)) return fkv_fail(err, FKV_E_INPUT, "not a JSON object");
    if (!json_object_get(request, "messages")) return fkv_fail(err, FKV_E_INPUT, "has no messages");
    if (prompt && !json_is_boolean(prompt))
        return fkv_fail(err, FKV_E_INPUT, "add_generation_prompt must be true or false");
    const fkv_template_input in = {.messages = json_object_get(request, "messages"),
                                   .add_generation_prompt = json_is_true(prompt),
                                   .variables = json_is_null(variables) ? NULL : variables,
                                   .date = j->date};
    fkv_buf_clear(&j->text);
    fkv_status st = fkv_template_render(j->template, j->scratch, &in, &j->text, &why);
    if (st == FKV_E_INPUT) return put_error(j, &why, err);
    if (st) return fkv_fail(err, st, "%s", why.message);
    st = fkv_json_put_string(&j->out, j->text.len ? j->text.data : "", j->text.len, err);
    return st ? st : fkv_buf_puts(&j->out, "\n", err);
}

static fkv_status render_line(struct job *j, fkv_err *err)
{
    json_error_t why;
    const size_t mark = fkv_utf8_mark(j->line.data, j->line.len);
    json_t *request = fkv_json_parse(j->line.data + mark, j->line.len - mark, JSON_ALLOW_NUL, &why);
    fkv_status st;
    if (request)
        st = render(j, request, err);
    else if (json_error_code(&why) == json_error_out_of_memory)
        st = fkv_fail_memory(err);
    else
        st = fkv_fail(err, FKV_E_INPUT, "not a JSON object: %s", why.text);
    json_decref(request);
    return st;
}

static fkv_status render_lines(struct job *j, fkv_err *err)
{
    for (int64_t line = 1;; line++) {
        fkv_status st = fkv_line_read(stdin, &j->line, err);
        if (st == FKV_END) break;
        fkv_buf_clear(&j->out);
        if (!st) st = render_line(j, err);
        if (st) {
            snprintf(err->file, sizeof err->file, "standard input");
            err->line = line;
            return st;
        }
        if (fwrite(j->out.data, 1, j->out.len, stdout) != j->out.len)
            return fkv_fail_errno(err, NULL, "writing standard output");
    }
    return fflush(stdout) ? fkv_fail_errno(err, NULL, "writing standard output") : FKV_OK;
}

/* Fills j->date and *path; FKV_END when the usage was asked for. */
static fkv_status read_options(int argc, char **argv, struct job *j, const char **path, fkv_err *err)
{
    static const struct option options[] = {
        {"date", required_argument, NULL, 'd'}, {"help", no_argument, NULL, 'h'}, {0}};
    const time_t now = time(NULL);
    struct tm day;
    strftime(j->today, sizeof j->today, "%Y-%m-%d", gmtime_r(&now, &day));
    j->date = j->today;
    char letter[3];
    optind = 0; /* glibc: start anew, main may have parsed before */
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
        switch (c) {
        case 'd': j->date = optarg; break;
        case 'h': return FKV_END;
        default: return fkv_command_bad_option("template", fkv_command_option(argv, letter), usage, err);
        }
    }
    if (argc - optind != 1)
        return fkv_fail(err, FKV_E_INPUT,
                        "template: give one MODEL_DIR or FILE (see fairkv-batch template --help)");
    *path = argv[optind];
    return fkv_template_check_date(j->date, err);
}

static fkv_status open_template(const char *path, fkv_template **out, fkv_err *err)
{
    struct stat st;
    if (stat(path, &st)) return fkv_fail_open(err, path);
    if (!S_ISDIR(st.st_mode)) return fkv_template_open_file(path, NULL, out, err);
    fkv_status status = fkv_template_open_model(path, out, err);
    if (status || *out) return status;
    return fkv_fail_at(err, FKV_E_INPUT, path, 0, NULL,
                       "has no chat template: neither chat_template.jinja nor one in tokenizer_config.json");
}

int fkv_cmd_template(int argc, char **argv)
{
    fkv_err err = {0};
    struct job j = {0};
    const char *path = NULL;
    fkv_status st = read_options(argc, argv, &j, &path, &err);
    if (st == FKV_END) {
        fputs(usage, stdout);
        goto out;
    }
    if (!st) st = open_template(path, &j.template, &err);
    if (!st) st = fkv_template_scratch_new(&j.scratch, &err);
    if (!st) st = render_lines(&j, &err);
out:
    fkv_buf_free(&j.out);
    fkv_buf_free(&j.text);
    fkv_buf_free(&j.line);
    fkv_template_scratch_free(j.scratch);
    fkv_template_close(j.template);
    return fkv_command_end(st, &err);
}
