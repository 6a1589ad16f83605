/* AVX512-BF16: products of bfloat16 pairs in one instruction. */
#ifdef __x86_64__
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,bmi2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16")
#endif
#include "x86_512.h"

#include "vector.h"

#include "store.h"

#define STEP 8

#define BF16_ROWS(rows)                                                                              \
    static void dot_rows_##rows(const uint16_t *x, long k, const uint16_t *packed, float *sums) { \
        __m512 acc[rows][2];                                                                         \
        for (int r = 0; r < rows; r++) acc[r][0] = acc[r][1] = _mm512_setzero_ps();                  \
        for (long i = 0; i < k; i += 2) {                                                            \
            __m512bh b0 = (__m512bh)_mm512_loadu_si512(packed + i * PANEL);                          \
            __m512bh b1 = (__m512bh)_mm512_loadu_si512(packed + i * PANEL + 2 * LANES);              \
            for (int r = 0; r < rows; r++) {                                                         \
                int pair;                                                                            \
                memcpy(&pair, x + r * k + i, sizeof pair);                                           \
                __m512bh a = (__m512bh)_mm512_set1_epi32(pair);                                      \
                acc[r][0] = _mm512_dpbf16_ps(acc[r][0], a, b0);                                      \
                acc[r][1] = _mm512_dpbf16_ps(acc[r][1], a, b1);                                      \
            }                                                                                        \
        }                                                                                            \
        for (int r = 0; r < rows; r++) {                                                             \
            _mm512_storeu_ps(sums + r * PANEL, acc[r][0]);                                           \
            _mm512_storeu_ps(sums + r * PANEL + LANES, acc[r][1]);                                   \
        }                                                                                            \
    }
BF16_ROWS(1)
BF16_ROWS(2)
BF16_ROWS(3)
BF16_ROWS(4)
BF16_ROWS(5)
BF16_ROWS(6)
BF16_ROWS(7)
BF16_ROWS(8)

static void bf16_panel(const struct gemm *g, const void *rows_of_x, long row, long rows, long panel) {
    static void (*const dot_rows[])(const uint16_t *, long, const uint16_t *, float *) = {
        dot_rows_1, dot_rows_2, dot_rows_3, dot_rows_4, dot_rows_5, dot_rows_6, dot_rows_7, dot_rows_8};
    const uint16_t *x = rows_of_x;
    long k = (g->k + 31) / 32 * 32;
    const uint16_t *packed = (const uint16_t *)g->packed + panel * PANEL * k;
    float sums[STEP * PANEL] __attribute__((aligned(64)));
    for (long r = 0; r < rows; r += STEP) {
        long some = rows - r < STEP ? rows - r : STEP;
        dot_rows[some - 1](x + (row + r) * k, k, packed, sums);
        store_panel(g, sums, row + r, some, panel);
    }
}

void avx512bf16_level(struct kernels *to) {
    to->bf16_as_it_is = 1;
    to->bf16_panel = bf16_panel;
}

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
