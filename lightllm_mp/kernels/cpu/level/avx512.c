/* AVX-512 (F, BW, DQ, VL). */
#ifdef __x86_64__
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi2,avx512f,avx512bw,avx512vl,avx512dq"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,bmi2,avx512f,avx512bw,avx512vl,avx512dq")
#endif
#define TILE_M 8
#define TILE_N 2
#define SCORE_ROWS 8
#define DOT_ROWS 8
#define DOT_PANELS 2
#define DOT "dot_words.h"
#include "x86_512.h"

#include "kernels.h"

void avx512_level(struct kernels *to) { fill_all(to); }

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
