/* Fingerprints and checksums: 64-bit xxHash (XXH3), written as 16 hex digits; and random
 * numbers by counter. Owns nothing. Not for: keeping out somebody who wants to deceive. */
#ifndef FKV_BASE_HASH_H
#define FKV_BASE_HASH_H

#include <stddef.h>
#include <stdint.h>

#include "runner/base/status.h"

uint64_t fkv_hash(const void *bytes, size_t n, uint64_t seed);

/* Hash of a file's size, first and last 64 KiB: tells a changed file of any
 * size in constant time. */
fkv_status fkv_hash_file_ends(const char *path, uint64_t *out, fkv_err *err);
/* The same of the file as it was when it had so many bytes, fewer than or as many as now. */
fkv_status fkv_hash_file_ends_at(const char *path, int64_t size, uint64_t *out, fkv_err *err);

/* 16 lower-case hex digits and a NUL. */
void fkv_hash_hex(uint64_t h, char out[17]);

/* A stream of independent 64-bit values: the i-th value for a key. Counter
 * based (SplitMix64 finaliser over key and counter), so it has no state. */
uint64_t fkv_random_u64(uint64_t seed, uint64_t stream, uint64_t i);

#endif
