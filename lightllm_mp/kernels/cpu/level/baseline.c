/* What every processor of an architecture has: SSE2, or whatever the compiler makes of vectors of four floats. */
#ifndef __aarch64__ /* neon.c */
#define LANES 4
#define TILE_M 4
#define TILE_N 2
#define SCORE_ROWS 4
#define DOT_ROWS 4
#define DOT "dot_portable.h"
#include "kernels.h"

void baseline_level(struct kernels *to) { fill_all(to); }
#endif
