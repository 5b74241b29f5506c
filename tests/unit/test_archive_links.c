/* Nothing of a tar is mislaid: links, a missing end, holes. */
#include "archive_fixture.h"
#include "jobs/links.h"

static void links_out_of_the_archive_are_rows_not_read_from_disk(void **state)
{
    char path[600];
    (void)state;
    path_of("links.tar", path);
    struct archive *a = archive_write_new();
    archive_write_set_format_pax(a);
    assert_int_equal(archive_write_open_filename(a, path), ARCHIVE_OK);
    struct archive_entry *e = archive_entry_new();
    archive_entry_set_pathname(e, "soft.jsonl");
    archive_entry_set_filetype(e, AE_IFLNK);
    archive_entry_set_symlink(e, "/etc/passwd");
    archive_write_header(a, e);
    archive_entry_clear(e);
    archive_entry_set_pathname(e, "hard.jsonl");
    archive_entry_set_filetype(e, AE_IFREG);
    archive_entry_set_hardlink(e, "/etc/passwd");
    archive_write_header(a, e);
    archive_entry_clear(e);
    archive_entry_set_pathname(e, "/../abs.jsonl");
    archive_entry_set_filetype(e, AE_IFREG);
    archive_entry_set_size(e, 2);
    archive_write_header(a, e);
    archive_write_data(a, "1\n", 2);
    archive_entry_free(e);
    archive_write_close(a);
    archive_write_free(a);
    expect("links.tar", NULL,
           "links.tar|soft.jsonl|1|!unreadable_member\nlinks.tar|hard.jsonl|1|!unreadable_member\n"
           "links.tar|/../abs.jsonl|1|1\n");
}

/* Links lead to names in the archive, whatever is written between the slashes. */
static void names_of_targets_are_made_as_unpacking_would(void **state)
{
    static const struct {
        const char *name, *target;
        bool symbolic;
        const char *want;
    } cases[] = {
        {"a", NULL, false, "a"},
        {"./a//b/./c", NULL, false, "a/b/c"},
        {"/a/../b", NULL, false, "b"},
        {"../a", NULL, false, "../a"},
        {"a/../../../b", NULL, false, "../../b"},
        {"", NULL, false, ""},
        {"d/l", "a", true, "d/a"},
        {"d/l", "a", false, "a"},
        {"d/e/l", "../../x/./a", true, "x/a"},
        {"d/l", "/x/a", true, "x/a"},
        {"d/l", "../../a", true, "../a"},
        {"l", "./", true, ""},
        {"/d/l", "a", true, "d/a"},
        {"...", "..a/...", true, "..a/..."},
    };
    fkv_buf out = {0};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(fkv_links_name(cases[i].name, cases[i].target, cases[i].symbolic, &out, NULL),
                         FKV_OK);
        assert_string_equal(out.data, cases[i].want);
    }
    fkv_buf_free(&out);
}

/* Cut at any byte, a tar gives an error row or no run at all, but never some of its lines
 * in silence; only whole blocks of zeros at its end may be missing, but for the first. */
static void a_tar_cut_anywhere_is_never_taken_for_whole(void **state)
{
    static const member ms[] = {
        {"a.jsonl", "{1}\n{2}\n", 0}, {"b.txt", "not read", 0}, {"c.jsonl", "{3}", 0}};
    static const char *const forms[] = {"ustar", "gnutar", "pax", "v7tar"};
    (void)state;
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        fkv_buf bytes = {0};
        pack("w.tar", forms[i], NULL, NULL, ms, 3);
        append_file(&bytes, "w.tar");
        char *want = read_or_refuse("w.tar");
        assert_non_null(want);
        assert_null(strstr(want, "!"));
        size_t used = bytes.len;
        while (used && !bytes.data[used - 1]) used--;
        used = (used + 511) / 512 * 512; /* the last member's end */
        for (size_t n = 1; n < bytes.len; n += n < used + 1024 ? 37 : 1111) {
            cut("w.tar", "cut-w.tar", (int64_t)n);
            char *got = read_or_refuse("cut-w.tar");
            const bool seen = !got || strstr(got, "!damaged_archive");
            if (n < used + 512 && !seen) print_error("%s, cut at %zu of %zu: %s\n", forms[i], n, used, got);
            assert_true(n >= used + 512 || seen);
            free(got);
        }
        free(want);
        fkv_buf_free(&bytes);
    }
}

/* A hole is no text: it is said, not left out, wherever it stands. */
static void holes_in_a_sparse_member_are_damage(void **state)
{
    static const struct {
        int64_t at, size; /* of the data, {1} and a line feed; of the member */
        const char *want;
    } cases[] = {{0, 4, "s.tar|s.jsonl|1|{1}\ns.tar|z.jsonl|1|2\n"},
                 {0, 1 << 20, "s.tar|s.jsonl|1|{1}\ns.tar|s.jsonl|2|!damaged_archive\ns.tar|z.jsonl|1|2\n"},
                 {4096, 4100, "s.tar|s.jsonl|1|!damaged_archive\ns.tar|z.jsonl|1|2\n"}};
    char path[600];
    (void)state;
    path_of("s.tar", path);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *text = calloc(1, (size_t)cases[i].size);
        memcpy(text + cases[i].at, "{1}\n", 4);
        struct archive *a = archive_write_new();
        struct archive_entry *e = archive_entry_new();
        archive_write_set_format_pax(a);
        assert_int_equal(archive_write_open_filename(a, path), ARCHIVE_OK);
        archive_entry_set_pathname(e, "s.jsonl");
        archive_entry_set_filetype(e, AE_IFREG);
        archive_entry_set_size(e, cases[i].size);
        archive_entry_sparse_add_entry(e, cases[i].at, 4);
        archive_write_header(a, e);
        archive_write_data(a, text, (size_t)cases[i].size);
        archive_entry_clear(e);
        archive_entry_set_pathname(e, "z.jsonl");
        archive_entry_set_filetype(e, AE_IFREG);
        archive_entry_set_size(e, 1);
        archive_write_header(a, e);
        archive_write_data(a, "2", 1);
        archive_entry_free(e);
        archive_write_close(a);
        archive_write_free(a);
        free(text);
        expect("s.tar", NULL, cases[i].want);
    }
}

/* Of two members of a name a hard link means the one before it, as unpacking has it, a
 * symbolic link the last. */
static void a_link_means_what_unpacking_makes_of_it(void **state)
{
    static const struct {
        const char *name, *link, *text;
    } ms[] = {{"a.jsonl", NULL, "1"},      {"h.jsonl", "h:a.jsonl", NULL}, {"s.jsonl", "s:./a.jsonl", NULL},
              {"a.jsonl", NULL, "2"},      {"i.jsonl", "h:a.jsonl", NULL}, {"a.jsonl", "h:a.jsonl", NULL},
              {"e.jsonl", NULL, ""},       {"f.jsonl", "h:e.jsonl", NULL}, {"y.jsonl", "h:z.jsonl", NULL},
              {"z.jsonl", NULL, "3\n4\n"}, {"x.jsonl", "s:z.jsonl", NULL}};
    char path[600];
    (void)state;
    path_of("m.tar", path);
    struct archive *a = archive_write_new();
    struct archive_entry *e = archive_entry_new();
    archive_write_set_format_ustar(a);
    assert_int_equal(archive_write_open_filename(a, path), ARCHIVE_OK);
    for (size_t i = 0; i < sizeof ms / sizeof *ms; i++) {
        const char *link = ms[i].link;
        archive_entry_clear(e);
        archive_entry_set_pathname(e, ms[i].name);
        archive_entry_set_filetype(e, link && *link == 's' ? AE_IFLNK : AE_IFREG);
        archive_entry_set_size(e, ms[i].text ? (int64_t)strlen(ms[i].text) : 0);
        if (link && *link == 's') archive_entry_set_symlink(e, link + 2);
        if (link && *link == 'h') archive_entry_set_hardlink(e, link + 2);
        assert_int_equal(archive_write_header(a, e), ARCHIVE_OK);
        if (ms[i].text) archive_write_data(a, ms[i].text, strlen(ms[i].text));
    }
    archive_entry_free(e);
    archive_write_close(a);
    archive_write_free(a);
    /* The last member called a.jsonl is a link, and only one is followed. */
    expect("m.tar", NULL,
           "m.tar|a.jsonl|1|1\nm.tar|h.jsonl|1|1\nm.tar|s.jsonl|1|!unreadable_member\nm.tar|a.jsonl|1|2\n"
           "m.tar|i.jsonl|1|2\nm.tar|a.jsonl|1|2\nm.tar|y.jsonl|1|3\nm.tar|y.jsonl|2|4\n"
           "m.tar|z.jsonl|1|3\nm.tar|z.jsonl|2|4\nm.tar|x.jsonl|1|3\nm.tar|x.jsonl|2|4\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(links_out_of_the_archive_are_rows_not_read_from_disk),
        cmocka_unit_test(names_of_targets_are_made_as_unpacking_would),
        cmocka_unit_test(a_tar_cut_anywhere_is_never_taken_for_whole),
        cmocka_unit_test(holes_in_a_sparse_member_are_damage),
        cmocka_unit_test(a_link_means_what_unpacking_makes_of_it),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
