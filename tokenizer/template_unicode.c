/* Python's view of characters: see template_unicode.h. The classes are those of Unicode 14, as in
 * Python 3.11 and utf8proc 2.8. */
#include "tokenizer/template_unicode.h"

#include <utf8proc.h>

#include "tokenizer/characters.h"

/* SpecialCasing.txt: what has more than one character as its capital. Ascending. */
static const struct {
    uint16_t cp, upper[3];
} special[] = {
    {0x00df, {0x0053, 0x0053, 0}},      {0x0149, {0x02bc, 0x004e, 0}},
    {0x01f0, {0x004a, 0x030c, 0}},      {0x0390, {0x0399, 0x0308, 0x0301}},
    {0x03b0, {0x03a5, 0x0308, 0x0301}}, {0x0587, {0x0535, 0x0552, 0}},
    {0x1e96, {0x0048, 0x0331, 0}},      {0x1e97, {0x0054, 0x0308, 0}},
    {0x1e98, {0x0057, 0x030a, 0}},      {0x1e99, {0x0059, 0x030a, 0}},
    {0x1e9a, {0x0041, 0x02be, 0}},      {0x1f50, {0x03a5, 0x0313, 0}},
    {0x1f52, {0x03a5, 0x0313, 0x0300}}, {0x1f54, {0x03a5, 0x0313, 0x0301}},
    {0x1f56, {0x03a5, 0x0313, 0x0342}}, {0x1f80, {0x1f08, 0x0399, 0}},
    {0x1f81, {0x1f09, 0x0399, 0}},      {0x1f82, {0x1f0a, 0x0399, 0}},
    {0x1f83, {0x1f0b, 0x0399, 0}},      {0x1f84, {0x1f0c, 0x0399, 0}},
    {0x1f85, {0x1f0d, 0x0399, 0}},      {0x1f86, {0x1f0e, 0x0399, 0}},
    {0x1f87, {0x1f0f, 0x0399, 0}},      {0x1f88, {0x1f08, 0x0399, 0}},
    {0x1f89, {0x1f09, 0x0399, 0}},      {0x1f8a, {0x1f0a, 0x0399, 0}},
    {0x1f8b, {0x1f0b, 0x0399, 0}},      {0x1f8c, {0x1f0c, 0x0399, 0}},
    {0x1f8d, {0x1f0d, 0x0399, 0}},      {0x1f8e, {0x1f0e, 0x0399, 0}},
    {0x1f8f, {0x1f0f, 0x0399, 0}},      {0x1f90, {0x1f28, 0x0399, 0}},
    {0x1f91, {0x1f29, 0x0399, 0}},      {0x1f92, {0x1f2a, 0x0399, 0}},
    {0x1f93, {0x1f2b, 0x0399, 0}},      {0x1f94, {0x1f2c, 0x0399, 0}},
    {0x1f95, {0x1f2d, 0x0399, 0}},      {0x1f96, {0x1f2e, 0x0399, 0}},
    {0x1f97, {0x1f2f, 0x0399, 0}},      {0x1f98, {0x1f28, 0x0399, 0}},
    {0x1f99, {0x1f29, 0x0399, 0}},      {0x1f9a, {0x1f2a, 0x0399, 0}},
    {0x1f9b, {0x1f2b, 0x0399, 0}},      {0x1f9c, {0x1f2c, 0x0399, 0}},
    {0x1f9d, {0x1f2d, 0x0399, 0}},      {0x1f9e, {0x1f2e, 0x0399, 0}},
    {0x1f9f, {0x1f2f, 0x0399, 0}},      {0x1fa0, {0x1f68, 0x0399, 0}},
    {0x1fa1, {0x1f69, 0x0399, 0}},      {0x1fa2, {0x1f6a, 0x0399, 0}},
    {0x1fa3, {0x1f6b, 0x0399, 0}},      {0x1fa4, {0x1f6c, 0x0399, 0}},
    {0x1fa5, {0x1f6d, 0x0399, 0}},      {0x1fa6, {0x1f6e, 0x0399, 0}},
    {0x1fa7, {0x1f6f, 0x0399, 0}},      {0x1fa8, {0x1f68, 0x0399, 0}},
    {0x1fa9, {0x1f69, 0x0399, 0}},      {0x1faa, {0x1f6a, 0x0399, 0}},
    {0x1fab, {0x1f6b, 0x0399, 0}},      {0x1fac, {0x1f6c, 0x0399, 0}},
    {0x1fad, {0x1f6d, 0x0399, 0}},      {0x1fae, {0x1f6e, 0x0399, 0}},
    {0x1faf, {0x1f6f, 0x0399, 0}},      {0x1fb2, {0x1fba, 0x0399, 0}},
    {0x1fb3, {0x0391, 0x0399, 0}},      {0x1fb4, {0x0386, 0x0399, 0}},
    {0x1fb6, {0x0391, 0x0342, 0}},      {0x1fb7, {0x0391, 0x0342, 0x0399}},
    {0x1fbc, {0x0391, 0x0399, 0}},      {0x1fc2, {0x1fca, 0x0399, 0}},
    {0x1fc3, {0x0397, 0x0399, 0}},      {0x1fc4, {0x0389, 0x0399, 0}},
    {0x1fc6, {0x0397, 0x0342, 0}},      {0x1fc7, {0x0397, 0x0342, 0x0399}},
    {0x1fcc, {0x0397, 0x0399, 0}},      {0x1fd2, {0x0399, 0x0308, 0x0300}},
    {0x1fd3, {0x0399, 0x0308, 0x0301}}, {0x1fd6, {0x0399, 0x0342, 0}},
    {0x1fd7, {0x0399, 0x0308, 0x0342}}, {0x1fe2, {0x03a5, 0x0308, 0x0300}},
    {0x1fe3, {0x03a5, 0x0308, 0x0301}}, {0x1fe4, {0x03a1, 0x0313, 0}},
    {0x1fe6, {0x03a5, 0x0342, 0}},      {0x1fe7, {0x03a5, 0x0308, 0x0342}},
    {0x1ff2, {0x1ffa, 0x0399, 0}},      {0x1ff3, {0x03a9, 0x0399, 0}},
    {0x1ff4, {0x038f, 0x0399, 0}},      {0x1ff6, {0x03a9, 0x0342, 0}},
    {0x1ff7, {0x03a9, 0x0342, 0x0399}}, {0x1ffc, {0x03a9, 0x0399, 0}},
    {0xfb00, {0x0046, 0x0046, 0}},      {0xfb01, {0x0046, 0x0049, 0}},
    {0xfb02, {0x0046, 0x004c, 0}},      {0xfb03, {0x0046, 0x0046, 0x0049}},
    {0xfb04, {0x0046, 0x0046, 0x004c}}, {0xfb05, {0x0053, 0x0054, 0}},
    {0xfb06, {0x0053, 0x0054, 0}},      {0xfb13, {0x0544, 0x0546, 0}},
    {0xfb14, {0x0544, 0x0535, 0}},      {0xfb15, {0x0544, 0x053b, 0}},
    {0xfb16, {0x054e, 0x0546, 0}},      {0xfb17, {0x0544, 0x053d, 0}},
};

bool fkv_python_space(uint32_t cp)
{
    return fkv_is_white_space(cp) || (cp >= 0x1c && cp <= 0x1f);
}

bool fkv_python_printable(uint32_t cp)
{
    switch (utf8proc_category((utf8proc_int32_t)cp)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP: return false;
    case UTF8PROC_CATEGORY_ZS: return cp == ' ';
    default: return true;
    }
}

size_t fkv_python_upper(uint32_t cp, uint32_t out[3])
{
    size_t lo = 0, hi = sizeof special / sizeof *special, n = 0;
    while (lo < hi) {
        const size_t mid = lo + (hi - lo) / 2;
        if (special[mid].cp < cp)
            lo = mid + 1;
        else
            hi = mid;
    }
    if (lo < sizeof special / sizeof *special && special[lo].cp == cp) {
        for (; n < 3 && special[lo].upper[n]; n++) out[n] = special[lo].upper[n];
        return n;
    }
    out[0] = (uint32_t)utf8proc_toupper((utf8proc_int32_t)cp);
    return 1;
}

/* The property Cased. */
static bool is_cased(uint32_t cp)
{
    switch (utf8proc_category((utf8proc_int32_t)cp)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT: return true;
    default:
        return cp == 0xaa || cp == 0xba || (cp >= 0x2160 && cp <= 0x217f) || (cp >= 0x24b6 && cp <= 0x24e9) ||
               (cp >= 0x1f130 && cp <= 0x1f149) || (cp >= 0x1f150 && cp <= 0x1f169) ||
               (cp >= 0x1f170 && cp <= 0x1f189);
    }
}

/* The property Case_Ignorable. */
static bool is_ignorable(uint32_t cp)
{
    static const uint16_t marks[] = {0x27,   0x2e,   0x3a,   0xb7,   0x387,  0x55f,  0x5f4,  0x2018, 0x2019,
                                     0x2024, 0x2027, 0xfe13, 0xfe52, 0xfe55, 0xff07, 0xff0e, 0xff1a};
    switch (utf8proc_category((utf8proc_int32_t)cp)) {
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_SK: return true;
    default: break;
    }
    for (size_t i = 0; i < sizeof marks / sizeof *marks; i++)
        if (marks[i] == cp) return true;
    return false;
}

/* Whether the sigma at text[at] ends a word: something cased before it and nothing behind it. */
static bool is_final_sigma(const char *text, size_t n, size_t at)
{
    size_t len, p = at;
    uint32_t cp = 0;
    while (p > 0) {
        p -= fkv_utf8_before(text, p);
        cp = fkv_utf8_get(text + p, &len);
        if (!is_ignorable(cp)) break;
    }
    if (p == at || is_ignorable(cp) || !is_cased(cp)) return false;
    fkv_utf8_get(text + at, &len);
    for (p = at + len; p < n; p += len) {
        cp = fkv_utf8_get(text + p, &len);
        if (!is_ignorable(cp)) return !is_cased(cp);
    }
    return true;
}

size_t fkv_python_lower(const char *text, size_t n, size_t at, uint32_t out[2])
{
    size_t len;
    const uint32_t cp = fkv_utf8_get(text + at, &len);
    if (cp == 0x130) {
        out[0] = 'i';
        out[1] = 0x307;
        return 2;
    }
    out[0] = cp == 0x3a3 ? (is_final_sigma(text, n, at) ? 0x3c2 : 0x3c3)
                         : (uint32_t)utf8proc_tolower((utf8proc_int32_t)cp);
    return 1;
}
