/* Which backends this build has: see backend.h. */
#include "kernels/backend.h"

#include <string.h>

const fkv_backend *fkv_backend_find(const char *name)
{
    if (!strcmp(name, "cpu") || !strcmp(name, "auto")) return fkv_backend_cpu();
    return NULL;
}

const char *fkv_backend_names(void)
{
    return "cpu";
}
