/* How a record's tokens are chosen and what ends its answer: what the record asks for, else the job, else
 * the model's generation_config.json.
 *
 * Pure; stops borrow from the record and the setup. */
#ifndef FKV_RUNNER_SAMPLING_H
#define FKV_RUNNER_SAMPLING_H

#include "runner/setup.h"

/* With a seed of its own a record draws from a stream of that seed alone, so that equal requests get equal
 * answers; else from one of job.seed and its ordinal. */
fkv_sampling fkv_sampling_of(const fkv_setup *setup, const fkv_record *record);

/* Strings that end an answer. */
typedef struct fkv_stops {
    const char *text; /* n UTF-8 strings, none empty, each with its NUL, one behind the other */
    size_t n;
} fkv_stops;

fkv_stops fkv_stops_of(const fkv_setup *setup, const fkv_record *record);

#endif
