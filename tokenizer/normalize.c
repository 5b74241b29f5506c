/* NFC over runs of text, so that only what may change is looked at: see
 * normalize.h. The scratch owns all memory. The characters' decompositions and
 * compositions are utf8proc's; the order of marks is made here, because
 * utf8proc sorts them in quadratic time and a text can be all marks. */
#include "tokenizer/normalize.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "runner/base/mem.h"
#include "tokenizer/utf8.h"

/* The lead byte of U+0300. No character below changes under NFC unless
 * a mark follows, and no mark is below. */
enum { FIRST_MARK_LEAD = 0xcc };

static fkv_status grow(int32_t **p, size_t *cap, size_t need, fkv_err *err)
{
    if (need <= *cap) return FKV_OK;
    size_t want;
    if (!fkv_add_size(need, need / 2 + 256, &want)) return fkv_fail_memory(err);
    int32_t *grown = fkv_realloc(*p, want, sizeof **p);
    if (!grown) return fkv_fail_memory(err);
    *p = grown;
    *cap = want;
    return FKV_OK;
}

static int ccc(int32_t cp)
{
    return utf8proc_get_property(cp)->combining_class;
}

/* Stable insertion sort by class: marks come in twos and threes. */
static void sort_few(int32_t *m, size_t n)
{
    for (size_t i = 1; i < n; i++) {
        const int32_t cp = m[i];
        size_t j = i;
        while (j > 0 && ccc(m[j - 1]) > ccc(cp)) {
            m[j] = m[j - 1];
            j--;
        }
        m[j] = cp;
    }
}

/* Stable counting sort by class, of which there are 256. */
static void sort_many(int32_t *m, size_t n, int32_t *tmp)
{
    size_t at[257] = {0};
    for (size_t i = 0; i < n; i++) at[ccc(m[i]) + 1]++;
    for (int c = 0; c < 256; c++) at[c + 1] += at[c];
    for (size_t i = 0; i < n; i++) tmp[at[ccc(m[i])]++] = m[i];
    memcpy(m, tmp, n * sizeof *m);
}

static fkv_status order_marks(fkv_nfc_scratch *s, size_t n, fkv_err *err)
{
    for (size_t i = 0; i < n;) {
        if (!ccc(s->cps[i])) {
            i++;
            continue;
        }
        size_t end = i + 1;
        while (end < n && ccc(s->cps[end])) end++;
        if (end - i <= 32) {
            sort_few(s->cps + i, end - i);
        } else {
            fkv_status st = grow(&s->sorted, &s->n_sorted, end - i, err);
            if (st) return st;
            sort_many(s->cps + i, end - i, s->sorted);
        }
        i = end;
    }
    return FKV_OK;
}

/* Leaves the NFC of a run in s->run. */
static fkv_status compose_run(fkv_nfc_scratch *s, const char *text, size_t n, fkv_err *err)
{
    size_t n_cps = 0;
    for (size_t i = 0, len; i < n; i += len) {
        /* One character decomposes into at most 4; room for more is kept. */
        fkv_status st = grow(&s->cps, &s->cap, n_cps + 8, err);
        if (st) return st;
        int boundary = 0;
        const utf8proc_ssize_t k =
            utf8proc_decompose_char((utf8proc_int32_t)fkv_utf8_get(text + i, &len), s->cps + n_cps, 8,
                                    UTF8PROC_DECOMPOSE | UTF8PROC_STABLE, &boundary);
        if (k < 0 || k > 8) return fkv_fail(err, FKV_E_INPUT, "the text can't be normalized at byte %zu", i);
        n_cps += (size_t)k;
    }
    fkv_status st = order_marks(s, n_cps, err);
    if (st) return st;
    const utf8proc_ssize_t k =
        utf8proc_normalize_utf32(s->cps, (utf8proc_ssize_t)n_cps, UTF8PROC_COMPOSE | UTF8PROC_STABLE);
    if (k < 0) return fkv_fail(err, FKV_E_INPUT, "the text can't be normalized");
    fkv_buf_clear(&s->run);
    for (utf8proc_ssize_t i = 0; i < k; i++) {
        char bytes[4];
        const size_t len = fkv_utf8_put((uint32_t)s->cps[i], bytes);
        if ((st = fkv_buf_append(&s->run, bytes, len, err))) return st;
    }
    return FKV_OK;
}

fkv_status fkv_nfc(fkv_nfc_scratch *s, const char *text, size_t n, const char **out, size_t *n_out,
                   fkv_err *err)
{
    size_t copied = 0; /* text[0, copied) stands in s->text, if changed */
    bool changed = false;
    fkv_status st;
    fkv_buf_clear(&s->text);
    for (size_t i = 0; i < n;) {
        if ((unsigned char)text[i] < FIRST_MARK_LEAD) {
            i++;
            continue;
        }
        /* A run ends before the ASCII character that nothing is put on. */
        size_t begin = i, end = i;
        if (begin > copied) begin -= fkv_utf8_before(text, begin);
        while (end < n && (unsigned char)text[end] >= 0x80) end++;
        i = end;
        if ((st = compose_run(s, text + begin, end - begin, err))) return st;
        if (s->run.len == end - begin && !memcmp(s->run.data, text + begin, s->run.len)) continue;
        changed = true;
        if ((st = fkv_buf_append(&s->text, text + copied, begin - copied, err))) return st;
        if ((st = fkv_buf_append(&s->text, s->run.data, s->run.len, err))) return st;
        copied = end;
    }
    *out = text;
    *n_out = n;
    if (!changed) return FKV_OK;
    if ((st = fkv_buf_append(&s->text, text + copied, n - copied, err))) return st;
    *out = s->text.data;
    *n_out = s->text.len;
    return FKV_OK;
}

void fkv_nfc_scratch_free(fkv_nfc_scratch *s)
{
    free(s->cps);
    free(s->sorted);
    fkv_buf_free(&s->run);
    fkv_buf_free(&s->text);
    *s = (fkv_nfc_scratch){0};
}
