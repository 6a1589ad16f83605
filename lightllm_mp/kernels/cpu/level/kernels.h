/* All kernels from vectors of LANES floats. See gemm.h, attention.h and quantised.h for what else a level gives. */
#include <math.h>

#include "vector.h"

#include "activation.h"
#include "attention.h"
#include "delta.h"
#include "gemm.h"
#include "mixing.h"
#include "quantised.h"
#include "round.h"
#include "rows.h"

static void fill_all(struct kernels *to) {
    *to = (struct kernels){.widen = widen,
                           .float_panel = float_panel,
                           .bf16_panel = bf16_panel,
                           .float8_panel = float8_panel,
                           .expand_float8 = expand_float8,
                           .round_rows = round_rows,
                           .quantised_panels = quantised_panels,
                           .norm_rows = norm_rows,
                           .squares_rows = squares_rows,
                           .activation_rows = activation_rows,
                           .gate_rows = gate_rows,
                           .delta_heads = delta_heads,
                           .rotary_rows = rotary_rows,
                           .expert_weights = expert_weights,
                           .mix_rows = mix_rows,
                           .attend = attend,
                           .join_parts = join_parts};
}
