/* The reader: every layout, lines of every kind, damage, limits. Archives are
 * made here with libarchive. */
#include <errno.h>
#include <locale.h>

#include "archive_fixture.h"

/* The system's locales, which a test takes away. The linker gives this program newlocale as __wrap_newlocale.
 */
static bool no_locales;

locale_t __real_newlocale(int mask, const char *name, locale_t base);
locale_t __wrap_newlocale(int mask, const char *name, locale_t base);
locale_t __wrap_newlocale(int mask, const char *name, locale_t base)
{
    if (!no_locales) return __real_newlocale(mask, name, base);
    errno = ENOENT;
    return (locale_t)0;
}

/* What opening says about one bad file. */
static void refused(const char *archives, const char *word)
{
    fkv_reader *reader = NULL;
    fkv_errs errs = {0};
    fkv_job *job = make_job(archives, NULL, NULL);
    char message[2048];
    assert_int_equal(fkv_reader_open(job, &reader, &errs), FKV_E_INPUT);
    assert_int_equal(errs.n, 1);
    fkv_err_format(&errs.at[0], message, sizeof message);
    if (!strstr(message, word)) print_error("no \"%s\" in: %s\n", word, message);
    assert_non_null(strstr(message, word));
    fkv_reader_close(reader);
    fkv_errs_free(&errs);
    fkv_job_free(job);
}

static const member two[] = {
    {"data/x.jsonl", "{1}\n{2}\n", 0}, {"data/readme.md", "no\n", 0}, {"data/deep/y.jsonl", "{3}\n{4}", 0}};

static void every_layout_gives_the_same_lines(void **state)
{
    static const struct {
        const char *name, *format, *filter, *options;
    } layouts[] = {
        {"a.tar", "ustar", NULL, NULL},
        {"a.tar.gz", "pax", "gzip", NULL},
        {"a.tar.zst", "gnutar", "zstd", NULL},
        {"a.tar.xz", "ustar", "xz", NULL},
        {"a.tar.bz2", "pax", "bzip2", NULL},
        {"a.tgz", "ustar", "gzip", NULL},
        {"a.zip", "zip", NULL, NULL},
        {"b.zip", "zip", NULL, "compression=store"},
        {"a.7z", "7zip", NULL, NULL},
        {"no-suffix", "ustar", "zstd", NULL},
        {"other-suffix.dat", "zip", NULL, NULL},
    };
    (void)state;
    for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++) {
        char want[400];
        const char *name = layouts[i].name;
        pack(name, layouts[i].format, layouts[i].filter, layouts[i].options, two, 3);
        snprintf(want, sizeof want,
                 "%s|data/x.jsonl|1|{1}\n%s|data/x.jsonl|2|{2}\n%s|data/deep/y.jsonl|1|{3}\n"
                 "%s|data/deep/y.jsonl|2|{4}\n",
                 name, name, name, name);
        expect(name, NULL, want);
    }
}

static void plain_files_are_their_own_member(void **state)
{
    static const char *const filters[][2] = {
        {"p.jsonl.gz", "gzip"}, {"p.jsonl.zst", "zstd"}, {"p.jsonl.xz", "xz"}, {"p.jsonl.bz2", "bzip2"}};
    const member one = {"x", "{1}\n\n{2}\n", 0};
    char want[200];
    (void)state;
    put("p.jsonl", "{1}\n\n{2}\n");
    expect("p.jsonl", NULL, "p.jsonl|p.jsonl|1|{1}\np.jsonl|p.jsonl|3|{2}\n");
    expect("p.jsonl", "input.members=p.jsonl", "p.jsonl|p.jsonl|1|{1}\np.jsonl|p.jsonl|3|{2}\n");
    for (size_t i = 0; i < 4; i++) {
        pack(filters[i][0], "raw", filters[i][1], NULL, &one, 1);
        snprintf(want, sizeof want, "%s|p.jsonl|1|{1}\n%s|p.jsonl|3|{2}\n", filters[i][0], filters[i][0]);
        expect(filters[i][0], NULL, want);
    }
    put("records", "{1}");
    expect("records", "input.members=*", "records|records|1|{1}\n");
    put("empty.jsonl", "");
    expect("empty.jsonl", NULL, "");
}

static void lines_are_cut_as_documented(void **state)
{
    (void)state;
    put("l.jsonl", "\xef\xbb\xbf{1}\r\n \t\r\n\n  {2} \n\r\n{3}\r{4}\n\xef\xbb\xbf{5}");
    expect("l.jsonl", NULL,
           "l.jsonl|l.jsonl|1|{1}\nl.jsonl|l.jsonl|4|  {2} \nl.jsonl|l.jsonl|6|{3}\r{4}\n"
           "l.jsonl|l.jsonl|7|{5}\n");
    put("bom.jsonl", "\xef\xbb\xbf\n\n");
    expect("bom.jsonl", NULL, "");
}

static void a_json_array_is_read_as_its_elements(void **state)
{
    static const struct {
        const char *text, *want; /* without archive and member */
    } cases[] = {
        {"[]", ""},
        {" \n[\n]\n", ""},
        {"\xef\xbb\xbf[{\"a\":[1,{}]},\n {\"b\":\"],}\\\"\\\\\"} ]\n",
         "1|{\"a\":[1,{}]}\n2|{\"b\":\"],}\\\"\\\\\"}\n"},
        {"[1,\"x,y\" ,null]", "1|1\n2|\"x,y\"\n3|null\n"},
        {"[{\n}]", "1|{\n}\n"},
        {"[1,]", "1|1\n2|!bad_json\n"},
        {"[,1]", "1|!bad_json\n2|1\n"},
        {"[ 1 2, 3]", "1|1 2\n2|3\n"},
        {"[{]}, {}]", "1|{]}\n2|{}\n"},
        {"[1", "1|!bad_json\n"},
        {"[{},", "1|{}\n2|!bad_json\n"},
        {"[\"", "1|!bad_json\n"},
        {"[", "1|!bad_json\n"},
        {"[{}] \n[{}]", "1|{}\n2|!bad_json\n"},
        {"{}\n[{}]\n", "1|{}\n2|[{}]\n"}, /* lines, as it doesn't begin with '[' */
        {"", ""},
        {" \n", ""},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const member packed = {"d/p.json", cases[i].text, 0};
        char want[2][500] = {"", ""};
        for (const char *p = cases[i].want; *p; p++) {
            const bool begins = *p >= '0' && *p <= '9' && p[1] == '|';
            for (int k = 0; k < 2; k++) {
                const size_t n = strlen(want[k]);
                snprintf(want[k] + n, sizeof want[k] - n, "%s%c",
                         !begins ? ""
                         : k     ? "p.zip|d/p.json|"
                                 : "p.json|p.json|",
                         *p);
            }
        }
        put("p.json", cases[i].text);
        expect("p.json", "input.members=*.json", want[0]);
        if (!*cases[i].text) continue;
        pack("p.zip", "zip", NULL, NULL, &packed, 1);
        expect("p.zip", "input.members=*.json", want[1]);
    }
    put("p.jsonl", "[1,2]\n");
    expect("p.jsonl", NULL, "p.jsonl|p.jsonl|1|[1,2]\n");
}

/* Elements of all lengths up to what is allowed, and some beyond, over many blocks. */
static void elements_cross_blocks_unharmed(void **state)
{
    enum { MOST = 1024 };
    fkv_buf text = {0}, want = {0};
    (void)state;
    fkv_buf_puts(&text, "[", NULL);
    for (int i = 0; i < 3000; i++) {
        const int n = i * 7 % (MOST + 40) + 2;
        char element[MOST + 64];
        memset(element, i % 3 ? '\\' : ']', (size_t)n);
        if (i % 3)
            for (int k = 2; k < n; k += 2) element[k] = '"';
        element[0] = element[n - 1] = '"';
        if (i % 3 && n % 2) element[n - 2] = 'x';
        fkv_buf_puts(&text, i ? " ,\n" : "", NULL);
        fkv_buf_append(&text, element, (size_t)n, NULL);
        fkv_buf_printf(&want, NULL, "e.json|e.json|%d|", i + 1);
        if (n <= MOST)
            fkv_buf_append(&want, element, (size_t)n, NULL);
        else
            fkv_buf_puts(&want, "!too_large", NULL);
        fkv_buf_puts(&want, "\n", NULL);
    }
    fkv_buf_puts(&text, "]", NULL);
    put_bytes("e.json", text.data, text.len);
    expect("e.json", "input.members=*", want.data);
    fkv_buf_free(&text);
    fkv_buf_free(&want);
}

static void a_plain_file_is_never_taken_for_an_archive(void **state)
{
    static const char zip_end[] = "{1}\nPK\5\6\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\n";
    static const char seven[] = "7z\xbc\xaf\x27\x1c\n{1}\n";
    char *got;
    (void)state;
    put_bytes("z.jsonl", zip_end, sizeof zip_end - 1);
    got = read_job(make_job("z.jsonl", NULL, NULL));
    assert_memory_equal(got, "z.jsonl|z.jsonl|1|{1}\nz.jsonl|z.jsonl|2|PK", 42);
    free(got);
    put_bytes("7.jsonl", seven, sizeof seven - 1);
    got = read_job(make_job("7.jsonl", NULL, NULL));
    assert_non_null(strstr(got, "7.jsonl|7.jsonl|2|{1}\n"));
    free(got);
    pack("t.jsonl", "ustar", NULL, NULL, two, 3); /* a tar by content, a text by name */
    got = read_job(make_job("t.jsonl", NULL, NULL));
    assert_non_null(strstr(got, "t.jsonl|t.jsonl|"));
    assert_null(strstr(got, "data/x.jsonl|1|"));
    free(got);
    put("m.jsonl", "#mtree\n./x type=file size=3\n");
    expect("m.jsonl", NULL, "m.jsonl|m.jsonl|1|#mtree\nm.jsonl|m.jsonl|2|./x type=file size=3\n");
}

static void members_are_chosen_by_pattern(void **state)
{
    static const member many[] = {{"a/x.jsonl", "1", 0},   {"b/x.jsonl", "2", 0}, {"b/y.jsonl", "3", 0},
                                  {"./c/z.jsonl", "4", 0}, {"w*.txt", "5", 0},    {"d/\xc3\xa9.q", "6", 0}};
    static const struct {
        const char *patterns, *lines; /* the members' texts */
    } cases[] = {
        {"*", "123456"},    {"*.jsonl", "1234"},      {"a/*", "1"},        {"*/x.jsonl", "12"},
        {"b/x.jsonl", "2"}, {"x.jsonl", ""},          {"?/x.jsonl", "12"}, {"[ac]/?.jsonl", "14"},
        {"[!a]/x.*", "2"},  {"[a-b]/[x-z].*", "123"}, {"c/z.jsonl", "4"},  {"./c/z.jsonl", "4"},
        {"w\\*.txt", "5"},  {"w\\**", "5"},           {"d/?.q", "6"},      {"b/* a/x.jsonl", "123"},
        {"*b*y*", "3"},     {"**.jsonl*", "1234"},    {"[", ""},           {"a/x.jsonl?", ""},
    };
    (void)state;
    pack("m.zip", "zip", NULL, NULL, many, 6);
    pack("m.tar", "pax", NULL, NULL, many, 6);
    for (size_t i = 0; i < 2 * (sizeof cases / sizeof *cases); i++) {
        char override[100], texts[20] = "";
        const size_t c = i / 2;
        snprintf(override, sizeof override, "input.members=%s", cases[c].patterns);
        char *got = read_job(make_job(i % 2 ? "m.zip" : "m.tar", override, NULL));
        for (char *nl = strchr(got, '\n'); nl; nl = strchr(nl + 1, '\n')) strncat(texts, nl - 1, 1);
        if (strcmp(texts, cases[c].lines) != 0) print_error("%s\n", cases[c].patterns);
        assert_string_equal(texts, cases[c].lines);
        free(got);
    }
}

static void oversized_lines_are_passed_over(void **state)
{
    const size_t sizes[] = {1023, 1024, 1025, 1026, 1100, 300000, 2000000};
    fkv_buf text = {0};
    (void)state;
    for (int crlf = 0; crlf < 2; crlf++) {
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            char want[3000], line[1100];
            const bool fits = sizes[i] <= 1024;
            fkv_buf_clear(&text);
            fkv_buf_puts(&text, crlf ? "a\r\n" : "a\n", NULL);
            for (size_t k = 0; k < sizes[i]; k++) fkv_buf_append(&text, "x", 1, NULL);
            if (fits) memcpy(line, text.data + 2 + crlf, sizes[i]);
            line[fits ? sizes[i] : 0] = '\0';
            fkv_buf_puts(&text, crlf ? "\r\n\r\nb" : "\n\nb", NULL);
            put_bytes("big.jsonl", text.data, text.len);
            snprintf(want, sizeof want,
                     "big.jsonl|big.jsonl|1|a\nbig.jsonl|big.jsonl|2|%s\nbig.jsonl|big.jsonl|4|b\n",
                     fits ? line : "!too_large");
            expect("big.jsonl", NULL, want);
        }
    }
    put_bytes("big.jsonl", text.data, text.len - 5); /* the oversized line is the last */
    expect("big.jsonl", NULL, "big.jsonl|big.jsonl|1|a\nbig.jsonl|big.jsonl|2|!too_large\n");
    fkv_buf_free(&text);
}

/* Many lines of many lengths, so that they cross the blocks at all places. */
static char *long_text(size_t n_lines)
{
    fkv_buf text = {0};
    for (size_t i = 0; i < n_lines; i++) {
        fkv_buf_printf(&text, NULL, "{\"n\":%zu,\"x\":\"", i);
        for (size_t k = 0; k < i * 7919 % 700; k++)
            fkv_buf_printf(&text, NULL, "%c", (int)('a' + (i * k) % 26));
        fkv_buf_puts(&text, "\"}\n", NULL);
    }
    return text.data;
}

static void lines_cross_blocks_unharmed(void **state)
{
    char *text = long_text(5000), *p = text;
    const member one = {"l.jsonl", text, 0};
    (void)state;
    pack("long.tar.zst", "ustar", "zstd", NULL, &one, 1);
    char *got = read_job(make_job("long.tar.zst", NULL, NULL)), *q = got;
    for (int i = 0; i < 5000; i++) {
        char prefix[100];
        const int n = snprintf(prefix, sizeof prefix, "long.tar.zst|l.jsonl|%d|", i + 1);
        assert_memory_equal(q, prefix, (size_t)n);
        q += n;
        const size_t len = (size_t)(strchr(p, '\n') - p) + 1;
        assert_memory_equal(q, p, len);
        q += len;
        p += len;
    }
    assert_string_equal(q, "");
    free(got);
    free(text);
}

/* Counts what a damaged archive gave before its one error row, and that a
 * second archive was read behind it. */
static void expect_damage(const char *name, int least)
{
    char archives[200];
    int lines = 0;
    snprintf(archives, sizeof archives, "%s zz.jsonl", name);
    put("zz.jsonl", "{end}\n");
    char *got = read_job(make_job(archives, NULL, NULL));
    char *damage = strstr(got, "!damaged_archive\n");
    if (!damage) print_error("%s gives no damage\n", name);
    assert_non_null(damage);
    assert_null(strstr(damage + 1, "!damaged_archive"));
    assert_string_equal(damage + strlen("!damaged_archive\n"), "zz.jsonl|zz.jsonl|1|{end}\n");
    for (char *p = got; p < damage; p++) {
        if (*p != '\n') continue;
        lines++;
        assert_int_equal(p[-1], '}'); /* no half line */
    }
    if (lines < least) print_error("%s gives %d lines before the damage\n", name, lines);
    assert_true(lines >= least);
    free(got);
}

static void damage_keeps_what_came_before(void **state)
{
    char *text = long_text(3000);
    const member ms[] = {{"a.jsonl", "{1}\n{2}\n", 0}, {"l.jsonl", text, 0}};
    const member raw = {"l.jsonl", text, 0};
    (void)state;
    pack("d.tar", "ustar", NULL, NULL, ms, 2);
    pack("d.tar.gz", "ustar", "gzip", NULL, ms, 2);
    pack("d.tar.zst", "ustar", "zstd", NULL, ms, 2);
    pack("d.zip", "zip", NULL, NULL, ms, 2);
    pack("d.jsonl.gz", "raw", "gzip", NULL, &raw, 1);
    pack("d.jsonl.zst", "raw", "zstd", NULL, &raw, 1);
    pack("d.jsonl.xz", "raw", "xz", NULL, &raw, 1);
    pack("d.jsonl.bz2", "raw", "bzip2", NULL, &raw, 1);
    cut("d.tar", "cut.tar", 700000);
    expect_damage("cut.tar", 1000);
    cut("d.tar.gz", "cut.tar.gz", -1000);
    expect_damage("cut.tar.gz", 2);
    cut("d.tar.zst", "cut.tar.zst", -100);
    expect_damage("cut.tar.zst", 2);
    cut("d.zip", "cut.zip", -3000);
    expect_damage("cut.zip", 2);
    cut("d.jsonl.gz", "cut.jsonl.gz", -4); /* a part of the trailer */
    expect_damage("cut.jsonl.gz", 1000);
    cut("d.jsonl.zst", "cut.jsonl.zst", -2);
    expect_damage("cut.jsonl.zst", 1000);
    cut("d.jsonl.xz", "cut.jsonl.xz", -20);
    expect_damage("cut.jsonl.xz", 1);
    free(text);
}

static void a_wrong_checksum_costs_one_row_not_the_archive(void **state)
{
    static const member ms[] = {{"a.jsonl", "{1}\n{2}\n", 0}, {"b.jsonl", "{3}\n", 0}};
    fkv_buf bytes = {0};
    char path[600];
    (void)state;
    pack("crc.zip", "zip", NULL, "compression=store", ms, 2);
    path_of("crc.zip", path);
    assert_int_equal(fkv_file_read(path, 1 << 20, &bytes, NULL), FKV_OK);
    char *at = memmem(bytes.data, bytes.len, "{1}", 3);
    assert_non_null(at);
    at[1] = '7';
    put_bytes("crc.zip", bytes.data, bytes.len);
    fkv_buf_free(&bytes);
    expect("crc.zip", NULL,
           "crc.zip|a.jsonl|1|{7}\ncrc.zip|a.jsonl|2|{2}\ncrc.zip|a.jsonl|3|!damaged_archive\n"
           "crc.zip|b.jsonl|1|{3}\n");
}

/* A compressed file with any one byte changed gives the same lines, an error row
 * or no run at all, but never other lines in silence. */
static void no_changed_byte_goes_unseen(void **state)
{
    static const member first = {"a.jsonl", "{\"one\":\"a line of the first\"}\n{2}\n", 0};
    static const member second = {"b.jsonl", "{3}\n{\"four\":\"another of the second\"}\n", 0};
    static const struct {
        const char *name, *format, *filter;
    } cases[] = {{"x.jsonl.gz", "raw", "gzip"},   {"x.tar.gz", "ustar", "gzip"},
                 {"x.jsonl.bz2", "raw", "bzip2"}, {"x.tar.bz2", "ustar", "bzip2"},
                 {"x.jsonl.xz", "raw", "xz"},     {"x.tar.xz", "ustar", "xz"}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        /* Two streams, one behind the other; a tar's reader ends with the first. */
        fkv_buf bytes = {0};
        int n_seen = 0;
        pack(cases[i].name, cases[i].format, cases[i].filter, NULL, &first, 1);
        append_file(&bytes, cases[i].name);
        pack(cases[i].name, cases[i].format, cases[i].filter, NULL, &second, 1);
        append_file(&bytes, cases[i].name);
        put_bytes(cases[i].name, bytes.data, bytes.len);
        char *want = read_or_refuse(cases[i].name);
        assert_non_null(want);
        assert_null(strstr(want, "!damaged"));
        assert_non_null(strstr(want, "{2}"));
        if (!strcmp(cases[i].format, "raw")) assert_non_null(strstr(want, "{3}"));
        for (size_t at = 0; at < bytes.len; at++) {
            const char was = bytes.data[at];
            bytes.data[at] = (char)(was ^ (at % 2 ? 0x10 : 0xff));
            put_bytes(cases[i].name, bytes.data, bytes.len);
            char *got = read_or_refuse(cases[i].name);
            const bool seen = !got || strstr(got, "!damaged_archive");
            if (!seen && strcmp(got, want) != 0) print_error("%s, byte %zu: %s\n", cases[i].name, at, got);
            assert_true(seen || strcmp(got, want) == 0);
            n_seen += seen;
            free(got);
            bytes.data[at] = was;
        }
        assert_true(2 * n_seen > (int)bytes.len);
        free(want);
        fkv_buf_free(&bytes);
    }
}

/* Zeros behind a compressed file are padding; anything else was something once. */
static void nothing_may_stand_behind_a_compressed_file(void **state)
{
    static const char *const cases[][2] = {
        {"p.jsonl.gz", "gzip"}, {"p.jsonl.bz2", "bzip2"}, {"p.jsonl.xz", "xz"}};
    char *text = long_text(500);
    const member one = {"a.jsonl", text, 0};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fkv_buf bytes = {0};
        const char *name = cases[i][0];
        pack(name, "raw", cases[i][1], NULL, &one, 1);
        append_file(&bytes, name);
        fkv_buf_append(&bytes, "\0\0\0\0\0\0\0\0", 8, NULL);
        put_bytes(name, bytes.data, bytes.len);
        char *got = read_or_refuse(name);
        assert_non_null(got);
        assert_null(strstr(got, "!damaged"));
        assert_non_null(strstr(got, "|500|"));
        free(got);
        fkv_buf_append(&bytes, "BZh\x1f\x8b", 5, NULL);
        put_bytes(name, bytes.data, bytes.len);
        got = read_or_refuse(name);
        assert_non_null(got);
        assert_non_null(strstr(got, "|100|"));
        assert_non_null(strstr(got, "!damaged_archive"));
        free(got);
        fkv_buf_free(&bytes);
    }
    free(text);
}

static bool stop_after(void *n_left)
{
    return (*(int *)n_left)-- <= 0;
}

/* Asked in the midst of a line, of a member that is passed over, and of the end. */
static void reading_can_be_stopped(void **state)
{
    static const struct {
        const char *name, *format, *filter;
    } cases[] = {{"s.jsonl", NULL, NULL},
                 {"s.jsonl.gz", "raw", "gzip"},
                 {"s.jsonl.xz", "raw", "xz"},
                 {"s.tar.gz", "ustar", "gzip"},
                 {"s.zip", "zip", NULL}};
    enum { BYTES = 3 << 20 };
    char *text = malloc(BYTES + 1);
    (void)state;
    memset(text, 'x', BYTES);
    text[BYTES] = '\0';
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const member ms[] = {{"x.md", text, 0}, {"x.jsonl", text, 0}};
        const bool raw = !cases[i].format || !strcmp(cases[i].format, "raw");
        if (cases[i].format)
            pack(cases[i].name, cases[i].format, cases[i].filter, NULL, raw ? ms + 1 : ms, raw ? 1 : 2);
        else
            put(cases[i].name, text);
        int n_asked = 0;
        for (int after = 0, st = FKV_OK; st != FKV_END; after++) {
            fkv_reader *reader = NULL;
            fkv_errs errs = {0};
            fkv_err err = {0};
            fkv_line line;
            int n_left = after;
            fkv_job *job = make_job(cases[i].name, NULL, NULL);
            assert_int_equal(fkv_reader_open(job, &reader, &errs), FKV_OK);
            fkv_reader_watch(reader, stop_after, &n_left);
            while (!(st = fkv_reader_next(reader, &line, &err)))
                assert_string_equal(line.error_code, "too_large");
            assert_true(st == FKV_END || st == FKV_E_INTERRUPTED);
            assert_true(st == FKV_END || !line.error_code);
            n_asked += st == FKV_E_INTERRUPTED;
            fkv_reader_close(reader);
            fkv_job_free(job);
            assert_true(after < 1000);
        }
        if (n_asked < 10) print_error("%s: asked %d times\n", cases[i].name, n_asked);
        assert_true(n_asked >= 10);
    }
    free(text);
}

static void encrypted_members_are_damage(void **state)
{
    static const member ms[] = {{"a.jsonl", "{1}\n{2}\n", 0}};
    char path[600];
    (void)state;
    path_of("secret.zip", path);
    struct archive *a = archive_write_new();
    archive_write_set_format_zip(a);
    if (archive_write_set_options(a, "zip:encryption=zipcrypt") != ARCHIVE_OK ||
        archive_write_set_passphrase(a, "secret") != ARCHIVE_OK ||
        archive_write_open_filename(a, path) != ARCHIVE_OK) {
        archive_write_free(a);
        print_message("libarchive can't encrypt here\n");
        skip();
    }
    struct archive_entry *e = archive_entry_new();
    archive_entry_set_pathname(e, ms[0].name);
    archive_entry_set_filetype(e, AE_IFREG);
    archive_entry_set_size(e, 8);
    archive_write_header(a, e);
    archive_write_data(a, ms[0].text, 8);
    archive_entry_free(e);
    archive_write_close(a);
    archive_write_free(a);
    expect("secret.zip", NULL, "secret.zip|a.jsonl|1|!damaged_archive\n");
}

static void names_come_out_as_utf8(void **state)
{
    static const member ms[] = {{"\xc3\xa9\xff.jsonl", "1", 0}, {"\xe4\xbd\xa0.jsonl", "2", 0}};
    (void)state;
    pack("names.tar", "ustar", NULL, NULL, ms, 2);
    expect("names.tar", NULL, "names.tar|\xc3\xa9\xef\xbf\xbd.jsonl|1|1\nnames.tar|\xe4\xbd\xa0.jsonl|1|2\n");
}

/* libarchive loses names of zip and 7z there. */
static void a_system_without_a_utf_8_locale_is_refused(void **state)
{
    fkv_reader *reader = NULL;
    fkv_errs errs = {0};
    (void)state;
    pack("ascii.zip", "zip", NULL, NULL, two, 3);
    fkv_job *job = make_job("ascii.zip", NULL, NULL);
    no_locales = true;
    assert_int_equal(fkv_reader_open(job, &reader, &errs), FKV_E_SYSTEM);
    no_locales = false;
    assert_null(reader);
    assert_int_equal(errs.n, 1);
    assert_non_null(strstr(errs.at[0].message, "the locale C.UTF-8"));
    fkv_errs_free(&errs);
    fkv_job_free(job);
}

static void several_archives_in_order_and_a_limit(void **state)
{
    (void)state;
    put("s2.jsonl", "3\n4\n");
    put("s1.jsonl", "1\n\n2\n");
    expect("s2.jsonl s1.jsonl", NULL,
           "s1.jsonl|s1.jsonl|1|1\ns1.jsonl|s1.jsonl|3|2\ns2.jsonl|s2.jsonl|1|3\ns2.jsonl|s2.jsonl|2|4\n");
    expect("s2.jsonl s1.jsonl", "job.limit=3",
           "s1.jsonl|s1.jsonl|1|1\ns1.jsonl|s1.jsonl|3|2\ns2.jsonl|s2.jsonl|1|3\n");
    expect("s2.jsonl s1.jsonl", "input.members=s2*", "s2.jsonl|s2.jsonl|1|3\ns2.jsonl|s2.jsonl|2|4\n");
    expect("s2.jsonl s1.jsonl", "input.members=nothing", "");
}

static void bad_files_are_refused_when_opening(void **state)
{
    char noise[3000], path[600];
    (void)state;
    for (size_t i = 0; i < sizeof noise; i++) noise[i] = (char)(i * i * 31 + i / 7);
    put_bytes("noise.zip", noise, sizeof noise);
    refused("noise.zip", "noise.zip: Unrecognized archive format");
    put_bytes("noise.tar.zst", noise, sizeof noise);
    refused("noise.tar.zst", "noise.tar.zst");
    put("plain.jsonl.gz", "{1}\n");
    refused("plain.jsonl.gz", "not compressed as its name says");
    put_bytes("broken.jsonl.zst", "\x28\xb5\x2f\xfd\x24\x05", 6);
    refused("broken.jsonl.zst", "broken.jsonl.zst");
    put("gone.jsonl", "");
    fkv_job *job = make_job("gone.jsonl noise.zip", NULL, NULL);
    path_of("gone.jsonl", path);
    assert_int_equal(remove(path), 0);
    fkv_reader *reader = NULL;
    fkv_errs errs = {0};
    assert_int_equal(fkv_reader_open(job, &reader, &errs), FKV_E_INPUT);
    assert_int_equal(errs.n, 2);
    assert_string_equal(errs.at[0].file, path);
    assert_non_null(strstr(errs.at[0].message, "No such file"));
    fkv_errs_free(&errs);
    fkv_job_free(job);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_layout_gives_the_same_lines),
        cmocka_unit_test(plain_files_are_their_own_member),
        cmocka_unit_test(lines_are_cut_as_documented),
        cmocka_unit_test(a_json_array_is_read_as_its_elements),
        cmocka_unit_test(elements_cross_blocks_unharmed),
        cmocka_unit_test(a_plain_file_is_never_taken_for_an_archive),
        cmocka_unit_test(members_are_chosen_by_pattern),
        cmocka_unit_test(oversized_lines_are_passed_over),
        cmocka_unit_test(lines_cross_blocks_unharmed),
        cmocka_unit_test(damage_keeps_what_came_before),
        cmocka_unit_test(a_wrong_checksum_costs_one_row_not_the_archive),
        cmocka_unit_test(no_changed_byte_goes_unseen),
        cmocka_unit_test(nothing_may_stand_behind_a_compressed_file),
        cmocka_unit_test(reading_can_be_stopped),
        cmocka_unit_test(encrypted_members_are_damage),
        cmocka_unit_test(names_come_out_as_utf8),
        cmocka_unit_test(a_system_without_a_utf_8_locale_is_refused),
        cmocka_unit_test(several_archives_in_order_and_a_limit),
        cmocka_unit_test(bad_files_are_refused_when_opening),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
