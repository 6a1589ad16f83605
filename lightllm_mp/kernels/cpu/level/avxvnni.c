/* AVX-VNNI beside AVX2: products of words are added in one instruction. */
#ifdef __x86_64__
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi2,avxvnni"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,bmi2,avxvnni")
#endif
#define DOT_ROWS 4
#define DOT "dot_words.h"
#define HAVE_DPWSSD
#include "x86_256.h"

#include <math.h>

#include "vector.h"

#include "quantised.h"

void avxvnni_level(struct kernels *to) { to->quantised_panels = quantised_panels; }

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
