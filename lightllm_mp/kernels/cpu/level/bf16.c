/* Bfloat16 products in one instruction: of pairs (BFDOT), and of two rows with two outputs (BFMMLA).
 *
 * BFMMLA is defined as two BFDOTs, so a row's result is the same by either. */
#include "../native.h"
#ifdef WITH_ARM_LEVELS
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("arch=armv8.2-a+bf16"))), apply_to = function)
#else
#pragma GCC target("arch=armv8.2-a+bf16")
#endif
#include "neon.h"

#include "vector.h"

#include "store.h"

#define VECTORS (PANEL / LANES)
#define FEW_ROWS 4   /* fewer take the panel as it is */
#define PAIRED 128   /* inputs of a panel that are paired at once */

INLINE bfloat16x8_t load_eight(const uint16_t *p) { return vreinterpretq_bf16_u16(vld1q_u16(p)); }

/* Sums of `rows` rows with the panel as it is packed. */
INLINE void dot_rows(const uint16_t *x, long k, const uint16_t *packed, const int rows, float *sums) {
    float32x4_t acc[FEW_ROWS - 1][VECTORS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECTORS; v++) acc[r][v] = vdupq_n_f32(0);
    for (long i = 0; i < k; i += 8) {
        bfloat16x8_t a[FEW_ROWS - 1];
        for (int r = 0; r < rows; r++) a[r] = load_eight(x + r * k + i);
#define DOT_PAIR(j)                                                                              \
    for (int v = 0; v < VECTORS; v++) {                                                          \
        bfloat16x8_t b = load_eight(packed + (i + 2 * j) * PANEL + v * 8);                       \
        for (int r = 0; r < rows; r++) acc[r][v] = vbfdotq_laneq_f32(acc[r][v], b, a[r], j);     \
    }
        DOT_PAIR(0)
        DOT_PAIR(1)
        DOT_PAIR(2)
        DOT_PAIR(3)
#undef DOT_PAIR
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECTORS; v++) vst1q_f32(sums + r * PANEL + v * LANES, acc[r][v]);
}

static void dot_few(const uint16_t *x, long k, const uint16_t *packed, long rows, float *sums) {
    switch (rows) {
        case 1: dot_rows(x, k, packed, 1, sums); break;
        case 2: dot_rows(x, k, packed, 2, sums); break;
        case 3: dot_rows(x, k, packed, 3, sums); break;
        default: break;
    }
}

/* Inputs [from, from + count) of a panel as [count / 4][PANEL][4]. */
static void pair_inputs(const uint16_t *packed, long from, long count, uint16_t *paired) {
    for (long i = 0; i < count; i += 4)
        for (int v = 0; v < VECTORS; v++) {
            const uint16_t *two = packed + (from + i) * PANEL + v * 8;
            uint32x4x2_t words = {{vld1q_u32((const uint32_t *)two), vld1q_u32((const uint32_t *)(two + 2 * PANEL))}};
            vst2q_u32((uint32_t *)(paired + i * PANEL + v * 16), words);
        }
}

/* Adds to (or, if `begin`, sets) the sums of four rows and half a panel. */
INLINE void multiply_half(const uint16_t *x, long stride, long count, const uint16_t *paired, float *sums, int begin) {
    float32x4_t acc[2][VECTORS]; /* [2 rows][2 outputs] each */
    for (int r = 0; r < 2; r++)
        for (int v = 0; v < VECTORS; v++) {
            const float *at = sums + 2 * r * PANEL + 2 * v;
            acc[r][v] = begin ? vdupq_n_f32(0) : vcombine_f32(vld1_f32(at), vld1_f32(at + PANEL));
        }
    for (long i = 0; i < count; i += 4) {
        bfloat16x8_t a[2];
        for (int r = 0; r < 2; r++)
            a[r] = vreinterpretq_bf16_u16(
                vcombine_u16(vld1_u16(x + 2 * r * stride + i), vld1_u16(x + (2 * r + 1) * stride + i)));
        for (int v = 0; v < VECTORS; v++) {
            bfloat16x8_t b = load_eight(paired + i * PANEL + v * 8);
            for (int r = 0; r < 2; r++) acc[r][v] = vbfmmlaq_f32(acc[r][v], a[r], b);
        }
    }
    for (int r = 0; r < 2; r++)
        for (int v = 0; v < VECTORS; v++) {
            float *at = sums + 2 * r * PANEL + 2 * v;
            vst1_f32(at, vget_low_f32(acc[r][v]));
            vst1_f32(at + PANEL, vget_high_f32(acc[r][v]));
        }
}

static void bf16_panel(const struct gemm *g, const void *rows_of_x, long row, long rows, long panel) {
    float sums[MAX_ROWS_AT_ONCE * PANEL] __attribute__((aligned(64)));
    uint16_t paired[PAIRED * PANEL] __attribute__((aligned(64)));
    long k = (g->k + 31) / 32 * 32, fours = rows / FEW_ROWS * FEW_ROWS;
    const uint16_t *x = (const uint16_t *)rows_of_x + row * k;
    const uint16_t *packed = (const uint16_t *)g->packed + panel * PANEL * k;
    for (long from = 0; fours && from < k; from += PAIRED) {
        long count = k - from < PAIRED ? k - from : PAIRED;
        pair_inputs(packed, from, count, paired);
        for (long r = 0; r < fours; r += FEW_ROWS)
            for (int half = 0; half < 2; half++) {
                float *to = sums + r * PANEL + half * PANEL / 2;
                multiply_half(x + r * k + from, k, count, paired + half * PANEL * 2, to, from == 0);
            }
    }
    dot_few(x + fours * k, k, packed, rows - fours, sums + fours * PANEL);
    store_panel(g, sums, row, rows, panel);
}

void bf16_level(struct kernels *to) {
    to->bf16_as_it_is = 1;
    to->bf16_panel = bf16_panel;
}

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
