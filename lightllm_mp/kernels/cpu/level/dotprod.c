/* Products of bytes in one instruction beside NEON. */
#include "../native.h"
#ifdef WITH_ARM_LEVELS
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("arch=armv8.2-a+dotprod"))), apply_to = function)
#else
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif
#define DOT_ROWS 4
#define DOT "sdot.h"
#include "neon.h"

#include <math.h>

#include "vector.h"

#include "quantised.h"

void dotprod_level(struct kernels *to) { to->quantised_panel = quantised_panel; }

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
