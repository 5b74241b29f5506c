/* Memory of one template or one rendering: given out piece by piece, given back as a whole, and
 * never more than a limit. A limit that is met is the input's fault, no memory the system's;
 * refused says which it was. The holder owns the arena; what was given out lives until it is
 * emptied or freed. Not for: anything that lives longer. */
#ifndef FKV_TEMPLATE_ARENA_H
#define FKV_TEMPLATE_ARENA_H

#include <stdbool.h>
#include <stddef.h>

typedef struct fkv_tarena {
    struct fkv_tarena_block *last; /* the block in use; each knows the one before it */
    size_t used;                   /* bytes given out, and those claimed elsewhere */
    size_t limit;
    bool refused; /* the limit was met */
} fkv_tarena;

/* Zeroed memory for any type; NULL: the limit is met, or there is no memory. */
void *fkv_tarena_take(fkv_tarena *a, size_t n, size_t size);

/* Counts bytes that are held elsewhere against the limit. */
bool fkv_tarena_claim(fkv_tarena *a, size_t bytes);

/* Forgets everything, sets the limit, and keeps one block for the next use. */
void fkv_tarena_empty(fkv_tarena *a, size_t limit);
void fkv_tarena_free(fkv_tarena *a);

#endif
