/* NEON, which every processor of aarch64 has: 32 registers of four floats. */
#ifdef __aarch64__
#define TILE_M 6
#define TILE_N 4
#define SCORE_ROWS 8
#define DOT_ROWS 4
#define DOT "smlal.h"
#include "neon.h"

#include "kernels.h"

void neon_level(struct kernels *to) { fill_all(to); }
#endif
