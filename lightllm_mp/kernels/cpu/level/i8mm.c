/* Int8 matrix products: of two rows with two outputs in one instruction. */
#include "../native.h"
#ifdef WITH_ARM_LEVELS
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("arch=armv8.2-a+dotprod+i8mm"))), apply_to = function)
#else
#pragma GCC target("arch=armv8.2-a+dotprod+i8mm")
#endif
#define DOT_ROWS 4
#define DOT "smmla.h"
#include "neon.h"

#include <math.h>

#include "vector.h"

#include "quantised.h"

void i8mm_level(struct kernels *to) { to->quantised_panel = quantised_panel; }

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
