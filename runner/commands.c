/* How subcommands end: see commands.h. */
#include "runner/commands.h"

#include <stdio.h>

int fkv_command_end(fkv_status st, const fkv_err *err)
{
    char text[2048];
    if (!fkv_exit_code(st)) return 0;
    fflush(stdout); /* what came before it */
    fkv_err_format(err, text, sizeof text);
    fprintf(stderr, "fairkv-batch: %s\n", text);
    return fkv_exit_code(st);
}
