/* How subcommands end: see commands.h. */
#include "runner/commands.h"

#include <stdio.h>

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
