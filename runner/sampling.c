/* How tokens are chosen: see sampling.h. */
#include "runner/sampling.h"

fkv_sampling fkv_sampling_of(const fkv_setup *setup, const fkv_record *record)
{
    const fkv_job *j = setup->job;
    const fkv_record_sampling *own = &record->sampling;
    const fkv_generation *model = &setup->generation;
    const int64_t min_new = own->has_min_tokens ? own->min_tokens : model->min_new;
    const bool newline_ends = record->newline_ends && setup->newline >= 0;
    return (fkv_sampling){
        .temperature = (float)(own->has_temperature ? own->temperature : j->sampling.temperature),
        .top_p = (float)(own->has_top_p ? own->top_p : j->sampling.top_p),
        .top_k = (int32_t)(own->has_top_k ? own->top_k : j->sampling.top_k),
        .repetition_penalty =
            (float)(own->has_repetition_penalty ? own->repetition_penalty : model->repetition_penalty),
        .min_new = (int32_t)(newline_ends && min_new < 1 ? 1 : min_new),
        .ignores_ends = own->ignore_eos,
        .has_end = newline_ends,
        .end = newline_ends ? setup->newline : 0,
        .seed = own->has_seed ? own->seed : j->job.seed,
        .stream = own->has_seed ? 0 : (uint64_t)record->ordinal};
}

fkv_stops fkv_stops_of(const fkv_setup *setup, const fkv_record *record)
{
    const fkv_record_sampling *own = &record->sampling;
    if (own->has_stop) return (fkv_stops){own->stop.data, own->n_stop};
    return (fkv_stops){setup->stops.data, setup->job->sampling.n_stop};
}
