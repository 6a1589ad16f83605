/* AVX2 with FMA and F16C. */
#ifdef __x86_64__
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,bmi2")
#endif
#define TILE_M 6
#define TILE_N 2
#define SCORE_ROWS 4
#define DOT_ROWS 4
#define DOT "dot_words.h"
#include "x86_256.h"

#include "kernels.h"

void avx2_level(struct kernels *to) { fill_all(to); }

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
