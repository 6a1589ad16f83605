/* What the checks of the CPU kernels share: random values, buffers without a byte to spare, plain conversions. */
#ifndef CHECK_H
#define CHECK_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "native.h"

/* Counts a check; prints the words of one that fails. */
#define CHECK(condition, ...) count_check(condition, __FILE__, __LINE__, __VA_ARGS__)
__attribute__((format(printf, 4, 5))) void count_check(int holds, const char *file, int line, const char *format, ...);
extern long checks, failures;

/* `count` elements of `size` bytes, filled with 0xff. An access past their end is a fault. */
void *make(long count, long size);
void free_all(void);

long below(long limit); /* a random whole number in [0, limit) */
float uniform(void);    /* in [-1, 1) */

long size_of(enum dtype type);
double get(const void *p, long i, enum dtype type); /* not INT8 */
void put(void *p, long i, double value, enum dtype type);
void *random_values(long count, enum dtype type, float scale);
double half_value(uint16_t half);
double e4m3_value(uint8_t byte);
/* Half a unit in the last place of a result of `type`, and what a few float32 operations add. */
double rounding(double magnitude, enum dtype type);

void check_parallel(void);
void check_products(void);
void check_quantised(void);
void check_rows(void);
void check_attention(void);
void check_delta(void);
#endif
