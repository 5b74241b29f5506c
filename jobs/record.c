/* A record's buffers and its error: see record.h. A record owns its buffers. Not
 * for: filling it from a line (record_parse.c). */
#include "jobs/record.h"

#include <stdarg.h>
#include <string.h>

#include "runner/base/utf8.h"

void fkv_record_set_error(fkv_record *record, const char *code, const char *fmt, ...)
{
    char text[sizeof record->error_message];
    fkv_buf clean = {0};
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    snprintf(record->error_code, sizeof record->error_code, "%s", code);
    /* Messages quote the input and were cut: make them UTF-8 again. */
    const char *message = text;
    if (!fkv_utf8_append_clean(&clean, text, strlen(text), NULL) && clean.data) message = clean.data;
    size_t n = strlen(message);
    if (n >= sizeof record->error_message) n = sizeof record->error_message - 1;
    n = fkv_utf8_span(message, n);
    memcpy(record->error_message, message, n);
    record->error_message[n] = '\0';
    fkv_buf_free(&clean);
}

void fkv_record_free(fkv_record *record)
{
    fkv_buf_free(&record->member_name);
    fkv_buf_free(&record->id_json);
    fkv_buf_free(&record->dataset);
    fkv_buf_free(&record->fields);
    fkv_buf_free(&record->prompt);
    fkv_buf_free(&record->prefix);
    fkv_buf_free(&record->sampling.stop);
    *record = (fkv_record){0};
}
