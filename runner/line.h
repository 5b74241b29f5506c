/* Lines of a stream, for subcommands that read standard input. The buffer is the caller's. Not
 * for: archives (jobs/archive.h). */
#ifndef FKV_RUNNER_LINE_H
#define FKV_RUNNER_LINE_H

#include <stdio.h>

#include "runner/base/buf.h"

enum { FKV_LINE_MAX_BYTES = 256 << 20 };

/* Replaces line by the next one without its newline; NULs are kept. FKV_END at the end of input,
 * FKV_E_INPUT for a line that is too long. */
fkv_status fkv_line_read(FILE *in, fkv_buf *line, fkv_err *err);

#endif
