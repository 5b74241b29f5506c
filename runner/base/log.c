/* The log: see log.h. What goes out in one piece is put together first, so that lines of
 * several processes on one terminal or pipe don't mix either. */
#include "runner/base/log.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "runner/base/utf8.h"

enum { SAID = 2048, LINE = 2 * SAID, OUT = 2 * LINE + 1024, WIDEST = 512, USUAL_COLUMNS = 80 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static FILE *file;
static bool to_stderr = true;
static fkv_log_style style = {.level = FKV_LOG_INFO};
static char redrawn[WIDEST]; /* what stands below the lines; "": nothing */

static const char erase[] = "\r\x1b[K"; /* the line that the cursor is in */

/* Text that is put together in a buffer that is large enough. */
typedef struct piece {
    char text[OUT];
    size_t n;
} piece;

static void put(piece *p, const char *text)
{
    const size_t n = strlen(text);
    if (n >= sizeof p->text - p->n) return;
    memcpy(p->text + p->n, text, n + 1);
    p->n += n;
}

/* line has no control characters any more. */
static void put_string(piece *p, const char *line)
{
    put(p, "\"");
    for (; *line; line++) {
        const char c[3] = {*line == '"' || *line == '\\' ? '\\' : *line, *line, '\0'};
        put(p, c[0] == '\\' ? c : c + 1);
    }
    put(p, "\"");
}

static void put_object(piece *p, fkv_log_level level, const char *when, const char *line, const char *members)
{
    static const char *const names[] = {"error", "warning", "info", "debug"};
    put(p, "{\"time\":\"");
    put(p, when);
    put(p, "\",\"level\":\"");
    put(p, names[level]);
    put(p, "\",\"message\":");
    put_string(p, line);
    put(p, members);
    put(p, "}\n");
}

static const char *prefix_of(fkv_log_level level)
{
    return level == FKV_LOG_ERROR ? "error: " : level == FKV_LOG_WARNING ? "WARNING: " : "";
}

static bool is_terminal(void)
{
    const char *term = getenv("TERM");
    return isatty(STDERR_FILENO) && term && *term && strcmp(term, "dumb") != 0;
}

static bool redraws(void)
{
    return to_stderr && !style.json && style.level >= FKV_LOG_INFO && is_terminal();
}

/* The last column stays free: behind it some terminals begin another line. */
static size_t columns(void)
{
    struct winsize w;
    const bool known = !ioctl(STDERR_FILENO, TIOCGWINSZ, &w) && w.ws_col > 1;
    const size_t n = known ? w.ws_col - 1u : USUAL_COLUMNS - 1;
    return n < WIDEST ? n : WIDEST - 1;
}

static void put_redrawn(piece *p)
{
    char cut[WIDEST];
    if (!redrawn[0]) return;
    snprintf(cut, columns() + 1, "%s", redrawn);
    put(p, cut);
}

static void write_piece(const piece *p)
{
    fwrite(p->text, 1, p->n, stderr);
    fflush(stderr);
}

fkv_status fkv_log_open(const char *path, fkv_err *err)
{
    FILE *f = fopen(path, "ae");
    if (!f) return fkv_fail_errno(err, path, "open the log");
    fkv_log_close();
    pthread_mutex_lock(&lock);
    file = f;
    pthread_mutex_unlock(&lock);
    return FKV_OK;
}

void fkv_log_close(void)
{
    pthread_mutex_lock(&lock);
    if (file) fclose(file);
    file = NULL;
    pthread_mutex_unlock(&lock);
}

void fkv_log_set_stderr(bool on)
{
    pthread_mutex_lock(&lock);
    to_stderr = on;
    pthread_mutex_unlock(&lock);
}

void fkv_log_set_style(fkv_log_style s)
{
    pthread_mutex_lock(&lock);
    style = s;
    pthread_mutex_unlock(&lock);
}

fkv_log_style fkv_log_get_style(void)
{
    pthread_mutex_lock(&lock);
    const fkv_log_style s = style;
    pthread_mutex_unlock(&lock);
    return s;
}

/* With the lock. The redrawn line goes, and comes again below. */
static void say_to_stderr(fkv_log_level level, const char *when, const char *line, const char *members)
{
    piece p = {.n = 0};
    if (redrawn[0]) put(&p, erase);
    if (style.json) {
        put_object(&p, level, when, line, members);
    } else {
        if (style.stamped && !isatty(STDERR_FILENO)) {
            put(&p, when);
            put(&p, " ");
        }
        put(&p, prefix_of(level));
        put(&p, line);
        put(&p, "\n");
    }
    put_redrawn(&p);
    write_piece(&p);
}

/* progress: the line is about how far the work is. */
static void say(fkv_log_level level, const char *said, bool progress, const char *members)
{
    char line[LINE], when[32];
    const time_t now = time(NULL);
    struct tm tm;
    gmtime_r(&now, &tm);
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", &tm);
    fkv_utf8_show(said, line, sizeof line); /* names and texts from the input may be in it */
    pthread_mutex_lock(&lock);
    if (to_stderr && level <= style.level && !(progress && redraws()))
        say_to_stderr(level, when, line, members);
    if (file && (level <= FKV_LOG_INFO || level <= style.level)) {
        fprintf(file, "%s %s%s\n", when, prefix_of(level), line);
        fflush(file);
    }
    pthread_mutex_unlock(&lock);
}

static void say_formatted(fkv_log_level level, const char *fmt, va_list ap)
{
    char said[SAID];
    vsnprintf(said, sizeof said, fmt, ap);
    say(level, said, false, "");
}

void fkv_log(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    say_formatted(FKV_LOG_INFO, fmt, ap);
    va_end(ap);
}

void fkv_log_at(fkv_log_level level, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    say_formatted(level, fmt, ap);
    va_end(ap);
}

void fkv_log_progress(const char *line, const char *members)
{
    say(FKV_LOG_INFO, line, true, members);
}

bool fkv_log_redraws(void)
{
    pthread_mutex_lock(&lock);
    const bool yes = redraws();
    pthread_mutex_unlock(&lock);
    return yes;
}

void fkv_log_redraw(const char *line)
{
    piece p = {.n = 0};
    pthread_mutex_lock(&lock);
    if (redrawn[0] || (line[0] && redraws())) {
        put(&p, erase);
        snprintf(redrawn, sizeof redrawn, "%s", line);
        put_redrawn(&p);
        write_piece(&p);
    }
    pthread_mutex_unlock(&lock);
}
