/* AVX512-VNNI: products of words are added in one instruction. */
#ifdef __x86_64__
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,bmi2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")
#endif
#define DOT_ROWS 8
#define DOT_PANELS 2
#define DOT "dot_words.h"
#define HAVE_DPWSSD
#include "x86_512.h"

#include <math.h>

#include "vector.h"

#include "quantised.h"

void avx512vnni_level(struct kernels *to) { to->quantised_panels = quantised_panels; }

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
