/* Lines and elements: see lines.h. */
#include "jobs/lines.h"

#include <stdio.h>
#include <string.h>

#include "runner/base/utf8.h"

static const char mark[] = "\xef\xbb\xbf"; /* U+FEFF */
enum { MARK_BYTES = 3 };

void fkv_lines_begin(fkv_lines *l, bool may_be_array)
{
    l->may_be_array = may_be_array;
    l->state = FKV_LINES_BEGIN;
    l->line = l->depth = l->array_began = 0;
    l->in_string = l->escaped = l->skipping = l->carry_lent = l->over = false;
    l->p = l->end = l->joined = NULL;
    l->mark = 0;
    fkv_buf_clear(&l->carry);
}

void fkv_lines_free(fkv_lines *l)
{
    fkv_buf_free(&l->carry);
}

static fkv_step fill(fkv_lines *l, const fkv_lines_source *source)
{
    size_t n = 0;
    const fkv_step step = source->read(source->ctx, &l->p, &n);
    if (step != FKV_STEP_OK) l->p = l->end = NULL;
    if (step == FKV_STEP_OK) l->end = l->p + n;
    return step;
}

static void bad_piece(fkv_lines *l, fkv_piece *piece, const char *code, const char *what)
{
    l->line++;
    l->carry_lent = true;
    piece->error_code = code;
    snprintf(piece->error_message, sizeof piece->error_message, "%s", what);
}

static bool is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

static void skip_space(fkv_lines *l)
{
    while (l->p < l->end && is_blank(*l->p)) l->p++;
}

/* --- the beginning -------------------------------------------------------------------- */

/* Looks at the first block for the array's beginning, and passes it. */
static void begin(fkv_lines *l, fkv_piece *piece)
{
    const char *first = l->p;
    const char *encoding = fkv_utf8_other(l->p, (size_t)(l->end - l->p));
    l->state = FKV_LINES_LINES;
    if (encoding && !l->line) {
        l->state = FKV_LINES_OVER;
        bad_piece(l, piece, "bad_utf8", "");
        snprintf(piece->error_message, sizeof piece->error_message,
                 "the text is %s, which is not read: save it as UTF-8", encoding);
        return;
    }
    if (!l->may_be_array) return;
    l->p += fkv_utf8_mark(l->p, (size_t)(l->end - l->p));
    skip_space(l);
    if (l->p < l->end && *l->p == '[') {
        l->state = FKV_LINES_ARRAY;
        l->p++;
    } else {
        l->p = first;
    }
}

/* --- lines ---------------------------------------------------------------------------- */

/* The first byte order mark that stands in no string; NULL: there is none. */
static const char *find_mark(const char *text, size_t n)
{
    const char *end = text + n, *p = text;
    bool in_string = false;
    for (;;) {
        const char *found = memmem(p, (size_t)(end - p), mark, MARK_BYTES);
        if (!found) return NULL;
        for (; p < found; p++) {
            if (in_string && *p == '\\' && p + 1 < found)
                p++;
            else if (*p == '"')
                in_string = !in_string;
        }
        if (!in_string) return found;
        p = found + MARK_BYTES;
    }
}

/* A whole line's bytes, without its end. No piece: a blank one. */
static void take_line(fkv_lines *l, const char *text, size_t n, fkv_piece *piece)
{
    l->line++;
    while (fkv_utf8_mark(text, n)) {
        text += MARK_BYTES;
        n -= MARK_BYTES;
    }
    const char *found = find_mark(text, n);
    if (found) {
        l->joined = found;
        l->n_joined = n - (size_t)(found - text);
        n = (size_t)(found - text);
    }
    if (n && text[n - 1] == '\r') n--;
    if (n > l->most_bytes) {
        piece->error_code = "too_large";
        return;
    }
    size_t blanks = 0;
    while (blanks < n && is_blank(text[blanks])) blanks++;
    if (blanks == n) return;
    piece->text = text;
    piece->n = n;
}

/* One step towards the next line. */
static fkv_step next_line(fkv_lines *l, const fkv_lines_source *source, fkv_piece *piece, fkv_err *err)
{
    /* A byte order mark and "\r" don't count as the record's. */
    const size_t most = l->most_bytes + MARK_BYTES + 1;
    if (l->joined) {
        const char *text = l->joined;
        l->joined = NULL;
        take_line(l, text, l->n_joined, piece);
        piece->open = l->over && !l->joined;
        return FKV_STEP_OK;
    }
    if (l->carry_lent) fkv_buf_clear(&l->carry);
    l->carry_lent = false;
    if (l->p == l->end) {
        const fkv_step got = fill(l, source);
        if (got != FKV_STEP_END || !l->carry.len || l->skipping) return got;
        l->carry_lent = l->over = true;
        take_line(l, l->carry.data, l->carry.len, piece);
        piece->open = !l->joined;
        return FKV_STEP_OK;
    }
    const char *text = l->p;
    const char *nl = memchr(text, '\n', (size_t)(l->end - text));
    size_t n = (size_t)((nl ? nl : l->end) - text);
    l->p = nl ? nl + 1 : l->end;
    if (l->skipping) {
        l->skipping = !nl;
        return FKV_STEP_OK;
    }
    if (n + l->carry.len > most) {
        l->skipping = !nl;
        bad_piece(l, piece, "too_large", "");
        return FKV_STEP_OK;
    }
    if (!nl || l->carry.len) {
        if (fkv_buf_append(&l->carry, text, n, err)) return FKV_STEP_SYSTEM;
        if (!nl) return FKV_STEP_OK;
        text = l->carry.data;
        n = l->carry.len;
        l->carry_lent = true;
    }
    take_line(l, text, n, piece);
    return FKV_STEP_OK;
}

/* --- elements of an array --------------------------------------------------------------- */

/* Moves p behind the element's end, which is given back: ',' or ']'; '\0': it goes on in
 * the next block. Brackets that don't match are the element's own mistake. */
static char pass_element(fkv_lines *l)
{
    while (l->p < l->end) {
        const char c = *l->p++;
        if (l->in_string) {
            if (l->escaped || c == '\\')
                l->escaped = !l->escaped;
            else if (c == '"')
                l->in_string = false;
        } else if (c == '"') {
            l->in_string = true;
        } else if (c == '{' || c == '[') {
            l->depth++;
        } else if (l->depth == 0 && (c == ',' || c == ']')) {
            return c;
        } else if (l->depth && (c == '}' || c == ']')) {
            l->depth--;
        }
    }
    return '\0';
}

/* The element that ends here, of which text is what the last block had. */
static void take_element(fkv_lines *l, const char *text, size_t n, char end, bool first, fkv_piece *piece)
{
    if (end == ']') l->state = FKV_LINES_BEHIND_ARRAY;
    while (n && is_blank(text[n - 1])) n--;
    if (n == 0 && first && end == ']') return; /* an empty array */
    if (n == 0) {
        bad_piece(l, piece, "bad_json", "an element of the array is missing");
    } else if (n > l->most_bytes) {
        bad_piece(l, piece, "too_large", "");
    } else {
        l->line++;
        piece->text = text;
        piece->n = n;
    }
}

/* Behind an array there may be blanks, or a byte order mark and another file. */
static void pass_behind_array(fkv_lines *l, fkv_piece *piece)
{
    while (l->p < l->end) {
        if (l->mark == 0) skip_space(l);
        if (l->p == l->end) return;
        if (*l->p != mark[l->mark]) {
            l->state = FKV_LINES_OVER;
            bad_piece(l, piece, "bad_json", "more behind the array");
            return;
        }
        l->p++;
        if (++l->mark == MARK_BYTES) {
            l->mark = 0;
            l->state = FKV_LINES_BEGIN;
            l->array_began = l->line;
            return;
        }
    }
}

/* One step towards the next element. */
static fkv_step next_element(fkv_lines *l, const fkv_lines_source *source, fkv_piece *piece, fkv_err *err)
{
    if (l->carry_lent) fkv_buf_clear(&l->carry);
    l->carry_lent = false;
    if (l->p == l->end) {
        const fkv_step got = fill(l, source);
        const bool ends = l->state == FKV_LINES_BEHIND_ARRAY && !l->mark;
        if (got != FKV_STEP_END || ends) return got;
        bad_piece(l, piece, "bad_json", l->mark ? "more behind the array" : "the array does not end");
        piece->open = true;
        l->state = FKV_LINES_OVER;
        return FKV_STEP_OK;
    }
    if (!l->carry.len && !l->skipping && !l->in_string && !l->depth) skip_space(l);
    if (l->p == l->end) return FKV_STEP_OK;
    if (l->state == FKV_LINES_BEHIND_ARRAY) {
        pass_behind_array(l, piece);
        return FKV_STEP_OK;
    }
    const char *text = l->p;
    const char end = pass_element(l);
    const size_t n = (size_t)(l->p - text) - (end != '\0');
    const bool first = l->line == l->array_began;
    if (l->skipping || n + l->carry.len > l->most_bytes + MARK_BYTES + 1) {
        if (!l->skipping) bad_piece(l, piece, "too_large", "");
        l->skipping = end == '\0';
        if (end == ']') l->state = FKV_LINES_BEHIND_ARRAY;
        return FKV_STEP_OK;
    }
    if (end && !l->carry.len) {
        take_element(l, text, n, end, first, piece);
        return FKV_STEP_OK;
    }
    if (fkv_buf_append(&l->carry, text, n, err)) return FKV_STEP_SYSTEM;
    if (!end) return FKV_STEP_OK;
    l->carry_lent = true;
    take_element(l, l->carry.data, l->carry.len, end, first, piece);
    return FKV_STEP_OK;
}

fkv_step fkv_lines_next(fkv_lines *l, const fkv_lines_source *source, fkv_piece *piece, fkv_err *err)
{
    *piece = (fkv_piece){0};
    fkv_step got = FKV_STEP_OK;
    if (l->state == FKV_LINES_BEGIN || l->state == FKV_LINES_OVER) {
        if (l->p == l->end) got = fill(l, source);
        if (got == FKV_STEP_OK && l->state == FKV_LINES_OVER) l->p = l->end;
        if (got == FKV_STEP_OK && l->state == FKV_LINES_BEGIN && l->p < l->end) begin(l, piece);
        return got;
    }
    return l->state == FKV_LINES_LINES ? next_line(l, source, piece, err)
                                       : next_element(l, source, piece, err);
}
