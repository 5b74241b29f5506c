/* The manifests of all parts of an output as one. Owns its list of shards and the job's name; empty
 * after a failed load. Reads only. Not for: rows that are in no shard yet. Internal to jobs. */
#ifndef FKV_JOBS_MERGED_H
#define FKV_JOBS_MERGED_H

#include "jobs/manifest.h"

typedef struct fkv_merged {
    fkv_manifest shards; /* of all manifests together; its other fields are the identity's alone */
    int64_t n_parts, n_manifests;
    int64_t records;  /* of the whole input, as counted; -1: nobody did */
    bool complete;    /* all parts are */
    char *job;        /* job.name, as the first part has it */
    int64_t job_part; /* whose it is */
} fkv_merged;

fkv_status fkv_merged_load(const char *folder, fkv_merged *merged, fkv_err *err);
void fkv_merged_free(fkv_merged *merged);

#endif
