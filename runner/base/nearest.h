/* The known word that a mistyped one is most like, for suggestions. Owns nothing: words are
 * borrowed. Not for: deciding what was meant. */
#ifndef FKV_BASE_NEAREST_H
#define FKV_BASE_NEAREST_H

#include <stddef.h>

/* Set word, try every known one; best is then the nearest, the first of several, or NULL where
 * none is near enough to be a typing mistake. */
typedef struct fkv_nearest {
    const char *word;
    const char *best;
    size_t distance; /* of best */
} fkv_nearest;

void fkv_nearest_try(fkv_nearest *near, const char *known);

#endif
