/* How long a job's decoding takes with so many slots, by what a step takes at some numbers
 * of them: records follow each other in the slots, the last ones leave slots idle, and so
 * does an arena that holds fewer records than there are slots. Prefill takes the same
 * however many slots there are.
 *
 * Pure host functions over numbers: nothing is owned, nothing fails. Not for measuring steps
 * (engine/measure), nor for choosing the number of slots (the runner's).
 */
#ifndef FKV_ENGINE_JOB_TIME_H
#define FKV_ENGINE_JOB_TIME_H

#include <stdint.h>

/* MANY stands for a number of records that is not known. */
enum { FKV_CURVE_MAX = 16, FKV_JOB_MANY = 1 << 20 };

typedef struct fkv_step_point {
    int slots;
    double us;       /* of a step with all slots at work on the expected tokens */
    double empty_us; /* the same with hardly any tokens: what idle slots leave */
} fkv_step_point;

/* Steps by the number of slots, ascending. */
typedef struct fkv_step_curve {
    int n;
    fkv_step_point at[FKV_CURVE_MAX];
} fkv_step_curve;

/* A step of more slots never takes less: other programs only ever add time. */
void fkv_curve_smooth(fkv_step_curve *c);
/* A step of so many slots of which active are at work: straight lines between the points. */
double fkv_curve_step_us(const fkv_step_curve *c, int slots, double active);

/* The job as the sample shows it. */
typedef struct fkv_job_load {
    int64_t n_records;         /* to answer; 0: not known, many */
    const int32_t *new_tokens; /* [n_sample] of an answer, or NULL: all have the mean */
    int n_sample;
    double mean_new;
} fkv_job_load;

/* Decode steps of the whole job; at_once: records that the arenas hold at a time, at least 1. */
double fkv_job_decode_us(const fkv_job_load *load, const fkv_step_curve *c, int slots, double at_once);

/* n token_us + n n pair_us through two measured prompts of n[i] tokens and us[i]; neither is
 * negative. */
void fkv_prompt_rates(const int64_t n[2], const double us[2], double *token_us, double *pair_us);

#endif
