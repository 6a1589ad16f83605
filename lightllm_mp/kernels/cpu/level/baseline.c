/* What every processor of an architecture has: SSE2, or whatever the compiler makes of vectors of four floats. */
#ifndef __aarch64__ /* neon.c */
#define LANES 4
#define TILE_M 4
#define TILE_N 2
#define SCORE_ROWS 4
#define DOT_ROWS 4
#ifdef __x86_64__
#define DOT "dot_words.h"
#include "x86_128.h"
#else
#define DOT "dot_portable.h"
#endif
#include "kernels.h"

void baseline_level(struct kernels *to) { fill_all(to); }
#endif
