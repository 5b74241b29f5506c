/* The nearest word: see nearest.h. */
#include "runner/base/nearest.h"

#include <string.h>

enum { WORD_MOST = 32, FAR = 4 /* farther words are no typing mistakes */ };

/* Edit distance of two short words (insert, delete, replace). */
static size_t distance(const char *a, const char *b)
{
    const size_t na = strlen(a), nb = strlen(b);
    size_t row[WORD_MOST + 1];
    if (na > WORD_MOST || nb > WORD_MOST) return WORD_MOST;
    for (size_t j = 0; j <= nb; j++) row[j] = j;
    for (size_t i = 1; i <= na; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= nb; j++) {
            const size_t replace = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            row[j] = row[j] < row[j - 1] ? row[j] + 1 : row[j - 1] + 1;
            if (replace < row[j]) row[j] = replace;
        }
    }
    return row[nb];
}

void fkv_nearest_try(fkv_nearest *near, const char *known)
{
    const size_t d = distance(known, near->word);
    if (d >= (near->best ? near->distance : FAR) || d >= strlen(known)) return;
    near->best = known;
    near->distance = d;
}
