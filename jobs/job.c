/* The job file: lines through inih, overrides, environment, checks across keys.
 *
 * inih (Debian builds it with a line buffer of 200 bytes, continuation lines,
 * ';' comments behind white space, no line numbers for handlers) reads through
 * read_line, which keeps what inih does not tell: the line's number, whether it
 * was indented, and whether it was too long or meant nothing. A parsed fkv_job
 * owns all its strings; the parser's own memory ends with fkv_job_parse.
 *
 * Decisions: a key given twice is an error (an override may repeat; the last one
 * wins). "${NAME}" is replaced after the lines are joined; "$$" before a name or
 * "{" stands for "$"; a "$" elsewhere is plain. An override is checked in place of
 * the file's value, not beside it. A value stands as it is: what would be a quote, a
 * home folder, a comment or a variable in other languages and is none here is
 * refused with what to write, but in JSON.
 */
#include "jobs/job.h"

#include <ctype.h>
#include <ini.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "jobs/job_keys.h"
#include "runner/base/file.h"
#include "runner/base/mem.h"
#include "runner/base/utf8.h"

enum { JOB_FILE_MAX = 1 << 20 };

/* What was said about one key. */
typedef struct setting {
    fkv_buf text;
    int64_t line;   /* 0: an override */
    bool set;       /* by the file or an override */
    bool overriden; /* by -s */
    bool bad;       /* already reported; not to be parsed or missed */
    bool commented; /* a comment was taken from its lines */
} setting;

typedef struct parser {
    const char *path;
    char *dir;         /* of the job file */
    setting *settings; /* [fkv_n_keys] */
    fkv_errs *errs;
    fkv_status broken; /* memory ran out */

    const char *next, *end; /* of the file's text */
    int64_t line;           /* number of the line that inih has */
    bool indented;          /* it starts with white space */
    bool awaiting;          /* it must still reach the handler, or it means nothing */
    bool commented;         /* it ends with a comment */
    bool open_key;          /* inih would take an indented line for a continuation */
    int key;                /* that a continuation belongs to; -1: it is dropped */
} parser;

static void report(parser *p, const fkv_err *err)
{
    fkv_errs_add(p->errs, err);
    if (err->status == FKV_E_SYSTEM) p->broken = FKV_E_SYSTEM;
}

static void report_line(parser *p, int64_t line, const char *key, const char *message)
{
    fkv_err err = {0};
    fkv_fail_at(&err, FKV_E_INPUT, p->path, line, key, "%s", message);
    report(p, &err);
}

static fkv_place place_of(const parser *p, size_t key)
{
    const setting *s = &p->settings[key];
    if (s->overriden) return (fkv_place){.file = "-s", .dir = ""};
    return (fkv_place){.file = p->path, .line = s->line, .dir = p->dir};
}

/* "[name]" must be a known section with nothing but a comment behind it. */
static void check_header(parser *p, const char *line)
{
    char message[256];
    size_t n = 1;
    while (line[n] && line[n] != ']' && !fkv_is_comment(line, n)) n++;
    p->key = -1;
    p->open_key = false;
    if (line[n] != ']') {
        report_line(p, p->line, NULL, "a [section] without its closing bracket");
        return;
    }
    const char *name = line + 1;
    const size_t n_name = n - 1;
    for (n++; line[n] && fkv_is_blank(line[n]); n++) continue;
    if (line[n] && !fkv_is_comment(line, n)) report_line(p, p->line, NULL, "text behind the [section]");
    if (fkv_section_exists(name, n_name)) return;
    char word[64];
    snprintf(word, sizeof word, "%.*s", (int)(n_name < 60 ? n_name : 60), name);
    const char *near = fkv_key_nearest(NULL, word);
    snprintf(message, sizeof message, "unknown section [%s]%s%s%s", word, near ? "; did you mean [" : "",
             near ? near : "", near ? "]?" : "");
    report_line(p, p->line, NULL, message);
}

/* A line that inih can't have: its key, if it has one, counts as given. */
static void drop_line(parser *p, const char *line, size_t n, const char *message)
{
    size_t from = 0, to = 0;
    report_line(p, p->line, NULL, message);
    if (p->indented && p->open_key) return;
    p->key = -1;
    while (from < n && fkv_is_blank(line[from])) from++;
    while (to < n && line[to] != '=' && line[to] != ':') to++;
    while (to > from && fkv_is_blank(line[to - 1])) to--;
    for (size_t i = 0; i < fkv_n_keys; i++) {
        if (strlen(fkv_keys[i].name) == to - from && memcmp(fkv_keys[i].name, line + from, to - from) == 0)
            p->settings[i].bad = true;
    }
}

static void end_line(parser *p)
{
    if (p->awaiting) report_line(p, p->line, NULL, "neither a [section] nor a key = value");
    p->awaiting = false;
}

/* The next line for inih, fgets's way, never longer than inih's buffer. */
static char *read_line(char *str, int num, void *stream)
{
    parser *p = stream;
    end_line(p);
    if (p->next == p->end || num < 2) return NULL;
    const char *line = p->next;
    const char *nl = memchr(line, '\n', (size_t)(p->end - line));
    size_t n = (size_t)((nl ? nl : p->end) - line);
    p->next = nl ? nl + 1 : p->end;
    p->line++;
    if (n && line[n - 1] == '\r') n--;
    p->indented = n && fkv_is_blank(line[0]);
    str[0] = '\0';
    if (n >= (size_t)num) {
        char message[160];
        snprintf(message, sizeof message,
                 "longer than %d bytes; continue the value on the next line, indented", num - 1);
        drop_line(p, line, n, message);
        return str;
    }
    if (memchr(line, '\0', n)) {
        drop_line(p, line, n, "holds a NUL byte");
        return str;
    }
    memcpy(str, line, n);
    str[n] = '\0';
    const char *text = str;
    while (fkv_is_blank(*text)) text++;
    if (!*text || *text == ';' || *text == '#') return str;
    if (*text == '[' && !(p->indented && p->open_key))
        check_header(p, text);
    else
        p->awaiting = true;
    p->commented = false;
    for (size_t i = 0; str[i] && !p->commented; i++) p->commented = fkv_is_comment(str, i);
    return str;
}

/* What may have been meant by a key that is not there, or "". */
static void suggest(const char *section, const char *name, char *out, size_t size)
{
    const char *near = fkv_key_nearest(section, name);
    *out = '\0';
    if (near) snprintf(out, size, "; did you mean %s?", near);
    for (size_t i = 0; !near && i < fkv_n_keys; i++) {
        if (strcmp(fkv_keys[i].name, name) == 0)
            snprintf(out, size, "; it belongs to [%s]", fkv_keys[i].section);
    }
}

static void unknown_key(parser *p, const char *section, const char *name)
{
    char key[160], hint[96], message[128];
    suggest(section, name, hint, sizeof hint);
    snprintf(key, sizeof key, "%s.%s", section, name);
    snprintf(message, sizeof message, "unknown key%s", hint);
    report_line(p, p->line, key, message);
}

static void continue_value(parser *p, const char *section, const char *value)
{
    fkv_err err = {0};
    if (p->key < 0) return;
    setting *s = &p->settings[p->key];
    if (fkv_key_looks_like_one(section, value)) {
        report_line(p, p->line, NULL, "an indented line continues the key above; take the indentation away");
        return;
    }
    /* inih leaves comments in continuation lines. */
    size_t n = 0;
    while (value[n] && !fkv_is_comment(value, n)) n++;
    while (n && fkv_is_blank(value[n - 1])) n--;
    s->commented = s->commented || p->commented;
    fkv_status st = fkv_buf_puts(&s->text, "\n", &err);
    if (!st) st = fkv_buf_append(&s->text, value, n, &err);
    if (st) report(p, &err);
}

static int handle(void *user, const char *section, const char *name, const char *value)
{
    parser *p = user;
    fkv_err err = {0};
    p->awaiting = false;
    if (p->indented && p->open_key) {
        continue_value(p, section, value);
        return 1;
    }
    p->open_key = name[0] != '\0';
    p->key = -1;
    if (!*section) {
        report_line(p, p->line, name, "stands before any [section]");
        return 1;
    }
    if (!fkv_section_exists(section, strlen(section))) return 1; /* its header was reported */
    const int key = fkv_key_find(section, strlen(section), name, strlen(name));
    if (key < 0) {
        unknown_key(p, section, name);
        return 1;
    }
    setting *s = &p->settings[key];
    if (s->set) {
        fkv_place place = {.file = p->path, .line = p->line};
        fkv_key_fail(&fkv_keys[key], &place, &err, "is given twice, first in line %lld", (long long)s->line);
        report(p, &err);
        return 1;
    }
    s->set = true;
    s->line = p->line;
    s->commented = p->commented;
    p->key = key;
    if (fkv_buf_puts(&s->text, value, &err)) report(p, &err);
    return 1;
}

static fkv_status read_job_file(parser *p, fkv_err *err)
{
    fkv_buf text = {0};
    fkv_status st = fkv_file_read_any(p->path, JOB_FILE_MAX, &text, err);
    if (st) goto out;
    p->next = text.data;
    p->end = text.data + text.len;
    if (text.len >= 3 && memcmp(text.data, "\xef\xbb\xbf", 3) == 0) p->next += 3;
    const int before = p->errs->n;
    const int line = ini_parse_stream(read_line, p, handle, p);
    end_line(p);
    /* Whatever inih minds was reported above; this is for what we don't foresee. */
    if (line != 0 && p->errs->n == before) report_line(p, line > 0 ? line : 0, NULL, "not an INI file");
out:
    fkv_buf_free(&text);
    return st;
}

static void take_override(parser *p, const char *text)
{
    fkv_err err = {0};
    const char *dot = strchr(text, '.'), *equals = strchr(text, '=');
    if (!dot || !equals || dot > equals) {
        fkv_fail_at(&err, FKV_E_INPUT, "-s", 0, NULL, "\"%s\" is not of the form section.key=value", text);
        report(p, &err);
        return;
    }
    size_t n_name = (size_t)(equals - text);
    while (n_name && fkv_is_blank(text[n_name - 1])) n_name--;
    const size_t n_section = (size_t)(dot - text);
    const int key = n_name <= n_section ? -1 : fkv_key_find(text, n_section, dot + 1, n_name - n_section - 1);
    if (key < 0) {
        char section[64], name[64], full[128];
        snprintf(section, sizeof section, "%.*s", (int)(n_section < 63 ? n_section : 63), text);
        const size_t n = n_name > n_section ? n_name - n_section - 1 : 0;
        snprintf(name, sizeof name, "%.*s", (int)(n < 63 ? n : 63), dot + 1);
        snprintf(full, sizeof full, "%s.%s", section, name);
        const bool known = fkv_section_exists(section, strlen(section));
        const char *near = known ? NULL : fkv_key_nearest(NULL, section);
        char hint[96] = "";
        if (known) suggest(section, name, hint, sizeof hint);
        if (near) snprintf(hint, sizeof hint, "; did you mean %s?", near);
        fkv_fail_at(&err, FKV_E_INPUT, "-s", 0, full, "unknown %s%s", known ? "key" : "section", hint);
        report(p, &err);
        return;
    }
    setting *s = &p->settings[key];
    fkv_buf_clear(&s->text);
    s->set = s->overriden = true;
    s->bad = s->commented = false;
    if (fkv_buf_puts(&s->text, equals + 1, &err)) report(p, &err);
}

static bool is_json(const fkv_key *key)
{
    return key->type == FKV_KEY_STOP || key->type == FKV_KEY_OBJECT;
}

static bool begins_name(char c)
{
    return isalpha((unsigned char)c) || c == '_';
}

/* text with ${NAME} replaced, into out. */
static fkv_status expand(const fkv_key *key, const fkv_place *place, const char *text, fkv_buf *out,
                         fkv_err *err)
{
    fkv_status st = FKV_OK;
    while (*text && !st) {
        if (text[0] == '$' && text[1] == '$' && (text[2] == '{' || begins_name(text[2]))) {
            st = fkv_buf_append(out, text + 1, 2, err);
            text += 3;
            continue;
        }
        if (text[0] == '$' && begins_name(text[1]) && !is_json(key))
            return fkv_key_fail(
                key, place, err,
                "\"%.40s\": write ${NAME} for a variable, or $$ for a plain \"$\" before a name", text);
        if (strncmp(text, "${", 2) != 0) {
            const size_t n = 1 + strcspn(text + 1, "$");
            st = fkv_buf_append(out, text, n, err);
            text += n;
            continue;
        }
        char name[256];
        size_t n = 0;
        for (text += 2; isalnum((unsigned char)text[n]) || text[n] == '_'; n++) continue;
        if (n == 0 || n >= sizeof name || text[n] != '}' || isdigit((unsigned char)text[0]))
            return fkv_key_fail(key, place, err, "\"${\" without a variable's name and \"}\"");
        memcpy(name, text, n);
        name[n] = '\0';
        const char *value = getenv(name);
        if (!value) return fkv_key_fail(key, place, err, "the environment has no variable %s", name);
        st = fkv_buf_puts(out, value, err);
        text += n + 1;
    }
    return st;
}

/* What people are used to from elsewhere and means nothing here. */
static fkv_status check_habits(const fkv_key *key, const fkv_place *place, const char *text, fkv_err *err)
{
    const bool many = key->type == FKV_KEY_ARCHIVES || key->type == FKV_KEY_MEMBERS;
    bool begins = true; /* the value, or a word of a list */
    for (const char *p = text; *p; p++) {
        const bool blank = fkv_is_blank(*p), escaped = p > text && p[-1] == '\\';
        if (begins && (*p == '"' || *p == '\''))
            return fkv_key_fail(key, place, err, "begins with a quote, and values are written without%s",
                                many ? " (a backslash makes the next character plain, a blank too)" : "");
        if (begins && *p == '~' && (many || key->type == FKV_KEY_PATH || key->type == FKV_KEY_FILE))
            return fkv_key_fail(key, place, err,
                                "\"~\" stands for itself: write ${HOME} for the home folder");
        if (*p == '#' && p > text && fkv_is_blank(p[-1]) && (p < text + 2 || p[-2] != '\\'))
            return fkv_key_fail(key, place, err, "a '#' behind white space is no comment: write ';'");
        begins = (begins && blank) || (many && blank && !escaped);
    }
    return FKV_OK;
}

/* What could not be written back to job.ini or into a row is refused. */
static fkv_status check_text(const fkv_key *key, const fkv_place *place, const char *text, fkv_err *err)
{
    if (fkv_utf8_span(text, strlen(text)) != strlen(text))
        return fkv_key_fail(key, place, err, "is not valid UTF-8");
    for (size_t i = 0; text[i]; i++) {
        const unsigned char c = (unsigned char)text[i];
        if ((c < ' ' && c != '\n' && c != '\t') || c == 0x7f)
            return fkv_key_fail(key, place, err, "holds a control character");
        if (!is_json(key) && fkv_is_comment(text, i))
            return fkv_key_fail(key, place, err, "a ';' behind white space would start a comment");
    }
    return is_json(key) ? FKV_OK : check_habits(key, place, text, err);
}

/* JSON that a comment has cut: inih takes it away before the text is known to be a string's. */
static void explain_comment(fkv_err *err)
{
    const size_t n = strlen(err->message);
    snprintf(err->message + n, sizeof err->message - n,
             "; a ';' behind a blank begins a comment: in a string write \\u003b for it");
}

/* What is said of other keys is still to be checked: a wrong one counts as if it were not there. */
static void fall_back(const fkv_key *key, fkv_job *job)
{
    const fkv_place nowhere = {.file = "", .dir = ""};
    fkv_err ignored = {0};
    if (key->fallback) fkv_key_parse(key, key->fallback, &nowhere, job, &ignored);
}

static void parse_setting(parser *p, size_t i, fkv_job *job)
{
    const fkv_key *key = &fkv_keys[i];
    const setting *s = &p->settings[i];
    const fkv_place place = place_of(p, i);
    fkv_buf text = {0};
    fkv_err err = {0};
    fkv_status st = FKV_OK;
    if (s->bad) {
        fall_back(key, job);
        return;
    }
    if (!s->set && !key->fallback) {
        fkv_key_fail(key, &place, &err, "is missing; every job needs it");
        report(p, &err);
        return;
    }
    if (!s->set) {
        st = fkv_buf_puts(&text, key->fallback, &err);
    } else {
        st = expand(key, &place, s->text.data ? s->text.data : "", &text, &err);
        if (!st) st = fkv_buf_reserve(&text, 0, &err);
        if (!st) st = check_text(key, &place, text.data, &err);
    }
    if (!st) {
        char *from = text.data;
        while (fkv_is_blank(*from)) from++;
        while (text.data + text.len > from && fkv_is_blank(text.data[text.len - 1]))
            text.data[--text.len] = '\0';
        st = fkv_key_parse(key, from, &place, job, &err);
    }
    if (st) {
        if (is_json(key) && s->commented) explain_comment(&err);
        p->settings[i].bad = true;
        report(p, &err);
        fall_back(key, job);
    }
    fkv_buf_free(&text);
}

/* Whether the values of these keys can be relied on in a check across keys. */
static bool sound(const parser *p, const char *section, const char *name)
{
    const int i = fkv_key_find(section, strlen(section), name, strlen(name));
    return i >= 0 && !p->settings[i].bad;
}

static bool given(const parser *p, const char *section, const char *name)
{
    const int i = fkv_key_find(section, strlen(section), name, strlen(name));
    return i >= 0 && p->settings[i].set;
}

__attribute__((format(printf, 4, 5))) static void refuse(parser *p, const char *section, const char *name,
                                                         const char *fmt, ...)
{
    char message[512];
    fkv_err err = {0};
    const int i = fkv_key_find(section, strlen(section), name, strlen(name));
    if (i < 0 || p->settings[i].bad) return;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(message, sizeof message, fmt, ap);
    va_end(ap);
    const fkv_place place = place_of(p, (size_t)i);
    fkv_key_fail(&fkv_keys[i], &place, &err, "%s", message);
    report(p, &err);
}

/* What is always kept must be in an absolute budget. */
static void check_forced(parser *p, const fkv_job *job)
{
    const long long budget = job->profile.budget, window = job->profile.window, sinks = job->profile.sinks;
    if (budget < window)
        refuse(p, "profile", "budget", "%lld is less than profile.window, %lld", budget, window);
    else if (budget < window + sinks)
        refuse(p, "profile", "sinks", "%lld and profile.window, %lld, are more than profile.budget, %lld",
               sinks, window, budget);
}

static void check_across(parser *p, const fkv_job *job)
{
    const bool own_budgets = job->profile.budgets_file != NULL;
    const bool compresses = !own_budgets && job->profile.method != FKV_METHOD_NONE;
    if (job->profile.kernel % 2 == 0) refuse(p, "profile", "kernel", "must be odd");
    if (job->input.format == FKV_FORMAT_LONGBENCH && !job->input.prompts && sound(p, "input", "prompts"))
        refuse(p, "input", "format", "longbench needs input.prompts, the templates by dataset");
    if (compresses && job->profile.budget_percent <= 0 && sound(p, "profile", "budget") &&
        sound(p, "profile", "window") && sound(p, "profile", "sinks"))
        check_forced(p, job);
    if (compresses && job->profile.method == FKV_METHOD_SCORES && !job->profile.scores_file &&
        sound(p, "profile", "scores_file"))
        refuse(p, "profile", "method", "scores needs profile.scores_file");
    if (job->job.restart && (job->input.n_parts > 1 || job->input.claims) && sound(p, "job", "restart"))
        refuse(p, "input", "part",
               "job.restart = yes would move away what other parts write; restart without parts");
}

static fkv_status parser_open(parser *p, const char *path, fkv_errs *errs, fkv_job *job, fkv_err *err)
{
    struct stat sb;
    *p = (parser){.path = path, .errs = errs, .key = -1};
    /* Of the folder of a pipe or a stream, such as /dev, nobody thinks. */
    const bool is_stream =
        !strcmp(path, "/dev/stdin") || !strncmp(path, "/dev/fd/", 8) || !strncmp(path, "/proc/self/fd/", 14);
    const bool is_pipe = !stat(path, &sb) && !S_ISREG(sb.st_mode);
    p->dir = is_stream || is_pipe ? strdup("") : fkv_path_dir(path);
    p->settings = fkv_calloc(fkv_n_keys, sizeof *p->settings);
    job->path = strdup(path);
    if (!p->dir || !p->settings || !job->path) return fkv_fail_memory(err);
    if (strcmp(p->dir, ".") == 0) p->dir[0] = '\0'; /* "data/a.zip" rather than "./data/a.zip" */
    return FKV_OK;
}

static void parser_close(parser *p)
{
    for (size_t i = 0; p->settings && i < fkv_n_keys; i++) fkv_buf_free(&p->settings[i].text);
    free(p->settings);
    free(p->dir);
}

fkv_status fkv_job_read(const char *path, const char *const *overrides, size_t n_overrides, fkv_job **job,
                        fkv_errs *errs)
{
    parser p = {0};
    fkv_err err = {0};
    fkv_status st;
    const int before = errs->n;
    *job = NULL;
    fkv_job *j = calloc(1, sizeof *j);
    if (!j) {
        st = fkv_fail_memory(&err);
        goto out;
    }
    if ((st = parser_open(&p, path, errs, j, &err))) goto out;
    if ((st = read_job_file(&p, &err))) goto out;
    for (size_t i = 0; i < n_overrides; i++) take_override(&p, overrides[i]);
    for (size_t i = 0; i < fkv_n_keys; i++) parse_setting(&p, i, j);
    j->plan.mode_given = given(&p, "plan", "mode");
    check_across(&p, j);
    if (errs->n > before) st = p.broken ? p.broken : FKV_E_INPUT;
    if (p.broken) goto out;
    *job = j;
    j = NULL;
out:
    if (err.status) fkv_errs_add(errs, &err);
    parser_close(&p);
    fkv_job_free(j);
    return st;
}

fkv_status fkv_job_parse(const char *path, const char *const *overrides, size_t n_overrides, fkv_job **job,
                         fkv_errs *errs)
{
    const fkv_status st = fkv_job_read(path, overrides, n_overrides, job, errs);
    if (!st) return FKV_OK;
    fkv_job_free(*job);
    *job = NULL;
    return st;
}

void fkv_job_free(fkv_job *job)
{
    if (!job) return;
    for (size_t i = 0; i < job->input.n_files; i++) {
        free(job->input.files[i].path);
        free(job->input.files[i].name);
    }
    for (size_t i = 0; i < job->input.members.n; i++) free(job->input.members.at[i]);
    for (size_t i = 0; i < job->input.plain_datasets.n; i++) free(job->input.plain_datasets.at[i]);
    for (size_t i = 0; i < job->sampling.n_stop; i++) free(job->sampling.stop[i]);
    for (size_t i = 0; i < fkv_n_keys; i++) {
        const fkv_key_type type = fkv_keys[i].type;
        if (type == FKV_KEY_TEXT || type == FKV_KEY_PATH || type == FKV_KEY_FILE || type == FKV_KEY_OBJECT ||
            type == FKV_KEY_DATE)
            free(*(char **)((char *)job + fkv_keys[i].offset));
    }
    free(job->path);
    free(job->input.files);
    free(job->input.members.at);
    free(job->input.plain_datasets.at);
    free(job->sampling.stop);
    free(job);
}
