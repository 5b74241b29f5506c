/* The table of the job file's keys and the values' syntax: what job.c (reading)
 * and job_write.c (writing back) share. job_keys.c has the table, job_list.c lists
 * and globs, job_value.c all other values; each uses those before it. Owns no
 * memory but what it stores in the fkv_job. Internal to the job file's code;
 * everyone else sees job.h. */
#ifndef FKV_JOBS_JOB_KEYS_H
#define FKV_JOBS_JOB_KEYS_H

#include "jobs/job.h"

typedef enum fkv_key_type {
    FKV_KEY_TEXT,     /* char *; NULL when empty, which only a key whose fallback is "" may be */
    FKV_KEY_PATH,     /* char *, relative to the job file; NULL when empty */
    FKV_KEY_FILE,     /* char *, one of choices, else a path that must not be empty */
    FKV_KEY_INT,      /* int64_t in [lo, hi] */
    FKV_KEY_SIZE,     /* the same with an optional K, M or G (powers of 1,024) */
    FKV_KEY_AUTO,     /* the same; "auto" is stored as lo - 1 */
    FKV_KEY_SEED,     /* uint64_t, all of it */
    FKV_KEY_REAL,     /* double in [lo, hi], or (lo, hi] with lo_open */
    FKV_KEY_CHOICE,   /* enum: index in choices */
    FKV_KEY_FLAG,     /* bool: index in choices */
    FKV_KEY_BUDGET,   /* tokens, or a percentage */
    FKV_KEY_ERRORS,   /* a number of records, or a percentage */
    FKV_KEY_PART,     /* "i/n" or "auto" */
    FKV_KEY_ARCHIVES, /* glob patterns of files */
    FKV_KEY_MEMBERS,  /* fkv_words: patterns of member names, one at least */
    FKV_KEY_NAMES,    /* fkv_words: letters, digits, "_", "-", "." and what is not ASCII */
    FKV_KEY_STOP,     /* JSON array of strings */
    FKV_KEY_OBJECT,   /* char *: the text of a JSON object, compact and in ASCII; NULL when empty */
    FKV_KEY_DATE      /* char *: YYYY-MM-DD, from 1900 on; NULL when empty */
} fkv_key_type;

/* How a key enters fkv_job_write_identity. */
typedef enum fkv_key_identity {
    FKV_ID_NO,    /* can't change a row's bytes, or someone else pins what it leads to */
    FKV_ID_VALUE, /* by its value */
    FKV_ID_FILE,  /* by the file's size and the hash of its ends; a word that is no path by itself */
    FKV_ID_FILES, /* the same for input.archives, in any order */
    FKV_ID_MODEL  /* by the ends of the files that make the model */
} fkv_key_identity;

typedef struct fkv_key {
    const char *section, *name;
    fkv_key_type type;
    fkv_key_identity identity;
    size_t offset;        /* of the value in fkv_job */
    const char *fallback; /* as the job file would say it; NULL: the key is required */
    double lo, hi;        /* whole numbers up to 2^53 */
    bool lo_open;
    const char *choices;  /* words separated by a blank, in the enum's order */
    const char *formerly; /* what the first of them was called: still read, and written in identities; NULL */
    bool younger;         /* than outputs that shall go on: identities leave its fallback out */
    const char *help;
} fkv_key;

extern const fkv_key fkv_keys[];
extern const size_t fkv_n_keys;

enum { FKV_KEY_NAME_MAX = 64 };
#define FKV_KEY_WHOLE_MAX 1e15 /* "no limit": exact in a double, far beyond any input */

/* Where a value came from. */
typedef struct fkv_place {
    const char *file; /* the job file, or "-s" */
    int64_t line;
    const char *dir; /* that relative paths start from; "" for the working directory */
} fkv_place;

/* "section.name" into name. */
void fkv_key_full_name(const fkv_key *key, char name[FKV_KEY_NAME_MAX]);

/* FKV_E_INPUT with the place and the key's full name. */
fkv_status fkv_key_fail(const fkv_key *key, const fkv_place *place, fkv_err *err, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* Whether c separates words in a job file. */
static inline bool fkv_is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\v' || c == '\f';
}

/* Whether ';' at text[i] would start a comment in a job file. */
static inline bool fkv_is_comment(const char *text, size_t i)
{
    return text[i] == ';' && (i == 0 || fkv_is_blank(text[i - 1]));
}

/* Whether line begins like "key =" of that section: an indented key that inih
 * takes for a continuation of the key above. */
bool fkv_key_looks_like_one(const char *section, const char *line);

/* The table's index of section.name (n bytes each), or -1. */
int fkv_key_find(const char *section, size_t n_section, const char *name, size_t n_name);
bool fkv_section_exists(const char *section, size_t n);

/* The known word nearest to a mistyped one, or NULL if none is near. section
 * NULL: among the sections; else among its keys. */
const char *fkv_key_nearest(const char *section, const char *word);

/* job_list.c: stores the list that text says in job; text is expanded and trimmed,
 * and pieces of continued lines are separated by "\n". What an error leaves in job
 * is fkv_job_free's, here and below. */
fkv_status fkv_list_parse(const fkv_key *key, const char *text, const fkv_place *place, fkv_job *job,
                          fkv_err *err);

/* job_value.c: the same for a key of any type. */
fkv_status fkv_key_parse(const fkv_key *key, const char *text, const fkv_place *place, fkv_job *job,
                         fkv_err *err);

/* Appends the value in words, for messages, identity and job.ini (nothing for lists,
 * which are written element by element). */
fkv_status fkv_key_print(const fkv_key *key, const fkv_job *job, fkv_buf *out, fkv_err *err);

/* Whether the value of a key of text is a path. */
bool fkv_key_is_path(const fkv_key *key, const char *value);

#endif
