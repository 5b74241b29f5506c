/* Lines of a stream: see line.h. */
#include "runner/line.h"

fkv_status fkv_line_read(FILE *in, fkv_buf *line, fkv_err *err)
{
    fkv_buf_clear(line);
    for (;;) {
        fkv_status st = fkv_buf_reserve(line, 4096, err);
        if (st) return st;
        /* fgets stops at a newline but hides NULs, so bytes are read singly. */
        int c = 0;
        size_t room = line->cap - line->len - 1;
        while (room && (c = getc_unlocked(in)) != EOF && c != '\n') {
            line->data[line->len++] = (char)c;
            room--;
        }
        line->data[line->len] = '\0';
        if (!room && c != '\n' && c != EOF) {
            if (line->len > FKV_LINE_MAX_BYTES)
                return fkv_fail(err, FKV_E_INPUT, "a line of more than %d bytes", FKV_LINE_MAX_BYTES);
            continue;
        }
        if (c == EOF && ferror(in)) return fkv_fail_errno(err, NULL, "reading standard input");
        return c == EOF && line->len == 0 ? FKV_END : FKV_OK;
    }
}
