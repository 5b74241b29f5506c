/* NFC over runs of text, so that only what may change is looked at: see
 * nfc.h. The scratch owns all memory. The characters' decompositions and
 * compositions are utf8proc's; the order of marks is made here, because
 * utf8proc sorts them in quadratic time and a text can be all marks. */
#include "tokenizer/nfc.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "runner/base/mem.h"
#include "tokenizer/characters.h"

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

/* HF's normalizer has the tables of Unicode 9. Marks that came later have no
 * class there, so they are neither moved nor passed over in composing. To give
 * the ids that models were trained on, they are treated alike here. */
static bool is_late_mark(int32_t cp)
{
    static const int32_t ranges[][2] = {
        {0x7fd, 0x7fd},     {0x898, 0x89f},     {0x8ca, 0x8d3},     {0x9fe, 0x9fe},     {0xc3c, 0xc3c},
        {0xd3b, 0xd3c},     {0xeba, 0xeba},     {0x1715, 0x1715},   {0x1abf, 0x1ace},   {0x1df6, 0x1dfa},
        {0xa82c, 0xa82c},   {0x10d24, 0x10d27}, {0x10eab, 0x10eac}, {0x10efd, 0x10eff}, {0x10f46, 0x10f50},
        {0x10f82, 0x10f85}, {0x11070, 0x11070}, {0x1133b, 0x1133b}, {0x1145e, 0x1145e}, {0x11839, 0x1183a},
        {0x1193d, 0x1193e}, {0x11943, 0x11943}, {0x119e0, 0x119e0}, {0x11a34, 0x11a34}, {0x11a47, 0x11a47},
        {0x11a99, 0x11a99}, {0x11d42, 0x11d42}, {0x11d44, 0x11d45}, {0x11d97, 0x11d97}, {0x11f41, 0x11f42},
        {0x16ff0, 0x16ff1}, {0x1e08f, 0x1e08f}, {0x1e130, 0x1e136}, {0x1e2ae, 0x1e2ae}, {0x1e2ec, 0x1e2ef},
        {0x1e4ec, 0x1e4ef},
    };
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges && ranges[i][0] <= cp; i++)
        if (cp <= ranges[i][1]) return true;
    return false;
}

/* The one composition since Unicode 9, of U+11935 and U+11930; and the character
 * before the trailing jamo, which utf8proc 2.8 takes for one and loses. */
enum { LATE_COMPOSED = 0x11938, LATE_SECOND = 0x11930, BEFORE_TRAILING = 0x11a7 };

/* The canonical combining class. */
static int ccc(int32_t cp)
{
    const int class = utf8proc_get_property(cp)->combining_class;
    return class && is_late_mark(cp) ? 0 : class;
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

/* Puts the canonical decomposition of a run into s->cps. */
static fkv_status decompose_run(fkv_nfc_scratch *s, const char *text, size_t n, size_t *n_cps, fkv_err *err)
{
    *n_cps = 0;
    for (size_t i = 0, len; i < n; i += len) {
        /* One character decomposes into at most 4; room for more is kept. */
        enum { ROOM = 8 };
        fkv_status st = grow(&s->cps, &s->cap, *n_cps + ROOM, err);
        if (st) return st;
        const int32_t cp = (int32_t)fkv_utf8_get(text + i, &len);
        utf8proc_ssize_t k = 1;
        int boundary = 0;
        s->cps[*n_cps] = cp;
        if (cp != LATE_COMPOSED)
            k = utf8proc_decompose_char(cp, s->cps + *n_cps, ROOM, UTF8PROC_DECOMPOSE | UTF8PROC_STABLE,
                                        &boundary);
        if (k < 0 || k > ROOM) return fkv_fail(err, FKV_E_INPUT, "the text can't be normalized");
        *n_cps += (size_t)k;
    }
    return FKV_OK;
}

/* Composes cps[0, n) and appends it to s->run. */
static fkv_status compose(fkv_nfc_scratch *s, int32_t *cps, size_t n, fkv_err *err)
{
    const utf8proc_ssize_t k =
        utf8proc_normalize_utf32(cps, (utf8proc_ssize_t)n, UTF8PROC_COMPOSE | UTF8PROC_STABLE);
    fkv_status st = k < 0 ? fkv_fail(err, FKV_E_INPUT, "the text can't be normalized") : FKV_OK;
    for (utf8proc_ssize_t i = 0; !st && i < k; i++) {
        char bytes[4];
        const size_t len = fkv_utf8_put((uint32_t)cps[i], bytes);
        st = fkv_buf_append(&s->run, bytes, len, err);
    }
    return st;
}

/* Leaves the NFC of a run in s->run. */
static fkv_status normalize_run(fkv_nfc_scratch *s, const char *text, size_t n, fkv_err *err)
{
    size_t n_cps;
    fkv_status st = decompose_run(s, text, n, &n_cps, err);
    if (!st) st = order_marks(s, n_cps, err);
    fkv_buf_clear(&s->run);
    /* These begin a part of their own, so that nothing is composed with them. */
    for (size_t i = 0; !st && i < n_cps;) {
        size_t end = i + 1;
        while (end < n_cps && s->cps[end] != LATE_SECOND && s->cps[end] != BEFORE_TRAILING &&
               !is_late_mark(s->cps[end]))
            end++;
        st = compose(s, s->cps + i, end - i, err);
        i = end;
    }
    return st;
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
        if ((st = normalize_run(s, text + begin, end - begin, err))) return st;
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
