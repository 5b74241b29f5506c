/* A model (needle-tiny unless asked) and the needle prompts, for tests that run the engine. */
#ifndef FKV_TESTS_MODEL_FIXTURE_H
#define FKV_TESTS_MODEL_FIXTURE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/engine.h"
#include "jobs/archive.h"
#include "jobs/record.h"
#include "tokenizer/tokenizer.h"

typedef struct fixture_prompt {
    fkv_ids ids;
    char id[64]; /* JSON text */
} fixture_prompt;

typedef struct fixture {
    fkv_config config;
    fkv_safetensors *weights;
    fixture_prompt *prompts;
    int n;
} fixture;

static inline void fixture_die(const char *what, const fkv_err *err)
{
    char text[2048] = "";
    if (err) fkv_err_format(err, text, sizeof text);
    fprintf(stderr, "%s: %s\n", what, text);
    exit(1);
}

/* The model in a folder, and the first n prompts of member (data/needle_1k.jsonl, data/needle_500.jsonl). */
static inline void fixture_open(fixture *f, const char *model, const char *member, int n)
{
    char path[] = "/tmp/fkv-fixture-XXXXXX";
    fkv_err err = {0};
    fkv_errs errs = {0};
    fkv_job *job = NULL;
    fkv_reader *reader = NULL;
    fkv_record_parser *parser = NULL;
    fkv_record record = {0};
    fkv_tokenizer *tokenizer = NULL;
    fkv_tokenizer_scratch *scratch = NULL;
    fkv_line line;
    memset(f, 0, sizeof *f);
    const int fd = mkstemp(path);
    FILE *ini = fd < 0 ? NULL : fdopen(fd, "w");
    if (!ini) fixture_die("temporary job file", NULL);
    fprintf(ini,
            "[job]\nname = t\noutput = /tmp/unused\nlimit = %d\n[input]\narchives = " FKV_TEST_DIR
            "/data/needle.tar.zst\nmembers = %s\nformat = longbench\nprompts = " FKV_TEST_DIR
            "/data/needle-dataset2prompt.json\n[model]\npath = %s\n",
            n, member, model);
    fclose(ini);
    if (fkv_job_parse(path, NULL, 0, &job, &errs)) fixture_die("job", errs.at);
    unlink(path);
    if (fkv_reader_open(job, &reader, &errs)) fixture_die("reader", errs.at);
    if (fkv_record_parser_open(job, &parser, &errs)) fixture_die("parser", errs.at);
    if (fkv_tokenizer_open(model, &tokenizer, &err)) fixture_die("tokenizer", &err);
    if (fkv_tokenizer_scratch_new(tokenizer, &scratch, &err)) fixture_die("scratch", &err);
    if (fkv_config_read(model, &f->config, &err)) fixture_die("config", &err);
    if (fkv_safetensors_open(model, &f->weights, &err)) fixture_die("weights", &err);
    f->prompts = calloc((size_t)n, sizeof *f->prompts);
    while (f->n < n && !fkv_reader_next(reader, &line, &err)) {
        fixture_prompt *p = &f->prompts[f->n++];
        if (fkv_record_parse(parser, &line, &record, &err)) fixture_die("record", &err);
        snprintf(p->id, sizeof p->id, "%s", record.id_json.data);
        if (fkv_tokenizer_encode(tokenizer, scratch, record.prompt.data, record.prompt.len, true, &p->ids,
                                 NULL, NULL, &err))
            fixture_die("encode", &err);
    }
    if (f->n != n) fixture_die("too few prompts", NULL);
    fkv_record_free(&record);
    fkv_tokenizer_scratch_free(scratch);
    fkv_tokenizer_close(tokenizer);
    fkv_record_parser_close(parser);
    fkv_reader_close(reader);
    fkv_job_free(job);
    fkv_errs_free(&errs);
}

static inline void fixture_close(fixture *f)
{
    for (int i = 0; i < f->n; i++) fkv_ids_free(&f->prompts[i].ids);
    free(f->prompts);
    fkv_safetensors_close(f->weights);
    memset(f, 0, sizeof *f);
}

#endif
