/* What a request says for itself: its sampling, its messages, the body of an OpenAI
 * batch line. Internal to record_parse.c. What is wrong becomes the record's error; only
 * memory that runs out is a failure. What is found goes into the record, which owns it.
 * Not for: what goes around a prompt (the runner), fields that pass through (record_parse.c). */
#ifndef FKV_JOBS_RECORD_REQUEST_H
#define FKV_JOBS_RECORD_REQUEST_H

#include "jobs/record_json.h"

/* The limit of new tokens that the keys give: positive whole numbers, all the same. null
 * counts as none. */
void fkv_request_take_limit(const fkv_record_object *o, const fkv_record_key *keys, size_t n_keys,
                            fkv_record *record);

/* Whether the key is one of a request's own sampling: FKV_RECORD_TEMPERATURE and those behind it. */
bool fkv_request_samples(fkv_record_key key);

/* The sampling fields of o into record->sampling. The limit has been taken. */
fkv_status fkv_request_take_sampling(const fkv_record_object *o, fkv_record *record, fkv_err *err);

/* The messages of o, which are there, as the record's prompt. */
fkv_status fkv_request_take_messages(const fkv_record_object *o, fkv_record *record, fkv_err *err);

/* Whether a body's field changes no answer and passes through. */
bool fkv_request_ignores(const fkv_record_field *field);

/* An OpenAI batch line's request: o is the line, body what fkv_record_scan made of its body. */
fkv_status fkv_request_take(const fkv_record_object *o, const fkv_record_object *body, fkv_record *record,
                            fkv_err *err);

#endif
