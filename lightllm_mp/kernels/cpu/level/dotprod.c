/* Products of bytes are added in one instruction. */
#include "../native.h"
#ifdef WITH_ARM_LEVELS
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("arch=armv8.2-a+dotprod"))), apply_to = function)
#else
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif
#define DOT_ROWS 4
#define DOT "udot.h"
#include "neon.h"

#include <math.h>

#include "vector.h"

#include "quantised.h"
#include "round.h"

void dotprod_level(struct kernels *to) {
    to->round_rows = round_rows;
    to->quantised_panels = quantised_panels;
}

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
