/* AVX512-BF16: products of bfloat16 pairs in one instruction. */
#ifdef __x86_64__
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,bmi2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16")
#endif
#include "x86_512.h"

#include "vector.h"

#include "float8.h"
#include "store.h"

#define STEP 8
#define EXPANDED 128 /* inputs of a float8 panel at once */

#define BF16_ROWS(rows)                                                                              \
    static void dot_rows_##rows(const uint16_t *x, long stride, long k, const uint16_t *packed, float *sums, int begin) { \
        __m512 acc[rows][2];                                                                         \
        for (int r = 0; r < rows; r++) {                                                             \
            acc[r][0] = begin ? _mm512_setzero_ps() : _mm512_loadu_ps(sums + r * PANEL);             \
            acc[r][1] = begin ? _mm512_setzero_ps() : _mm512_loadu_ps(sums + r * PANEL + LANES);     \
        }                                                                                            \
        for (long i = 0; i < k; i += 2) {                                                            \
            __m512bh b0 = (__m512bh)_mm512_loadu_si512(packed + i * PANEL);                          \
            __m512bh b1 = (__m512bh)_mm512_loadu_si512(packed + i * PANEL + 2 * LANES);              \
            for (int r = 0; r < rows; r++) {                                                         \
                int pair;                                                                            \
                memcpy(&pair, x + r * stride + i, sizeof pair);                                      \
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

/* Sums of up to STEP rows, lines `stride` apart, with some inputs of a panel; `begin`: they are the first. */
static void (*const dot_rows[])(const uint16_t *x, long stride, long k, const uint16_t *packed, float *sums, int begin) = {
    dot_rows_1, dot_rows_2, dot_rows_3, dot_rows_4, dot_rows_5, dot_rows_6, dot_rows_7, dot_rows_8};

static void bf16_panel(const struct gemm *g, const void *rows_of_x, long row, long rows, long panel) {
    const uint16_t *x = rows_of_x;
    long k = (g->k + 31) / 32 * 32;
    const uint16_t *packed = (const uint16_t *)g->packed + panel * PANEL * k;
    float sums[STEP * PANEL] __attribute__((aligned(64)));
    for (long r = 0; r < rows; r += STEP) {
        long some = rows - r < STEP ? rows - r : STEP;
        dot_rows[some - 1](x + (row + r) * k, k, k, packed, sums, 1);
        store_panel(g, sums, row + r, some, panel);
    }
}

/* Words 0, 16, 1, 17, ...: pairs of two rounded vectors. */
#define PAIRED(i) i, i + 16

static void expand_inputs(const uint8_t *packed, const float *scales, long group, long from, long count, uint16_t *to) {
    static const uint16_t pairs[32] = {PAIRED(0), PAIRED(1), PAIRED(2),  PAIRED(3),  PAIRED(4),  PAIRED(5),
                                       PAIRED(6), PAIRED(7), PAIRED(8),  PAIRED(9),  PAIRED(10), PAIRED(11),
                                       PAIRED(12), PAIRED(13), PAIRED(14), PAIRED(15)};
    const __m512i order = _mm512_loadu_si512(pairs);
    EACH_FOUR_OF_FLOAT8(packed, scales, group, from, count, {
        __m512i first = (__m512i)_mm512_cvtne2ps_pbh((__m512)w1, (__m512)w0);
        __m512i second = (__m512i)_mm512_cvtne2ps_pbh((__m512)w3, (__m512)w2);
        _mm512_storeu_si512(to + j * PANEL + 2 * v, _mm512_permutexvar_epi16(order, first));
        _mm512_storeu_si512(to + (j + 2) * PANEL + 2 * v, _mm512_permutexvar_epi16(order, second));
    })
}

static void expand_float8(const void *panel, uint16_t *to, long k, long group) {
    const uint8_t *packed = panel;
    expand_inputs(packed, (const float *)(packed + k * PANEL), group, 0, k, to);
}

/* The same sums, to the last bit, as of the whole panel expanded: they are kept between its parts. */
static void float8_as_it_is(const struct gemm *g, const void *rows_of_x, long row, long rows, long panel) {
    const uint16_t *x = rows_of_x;
    float sums[MAX_ROWS_AT_ONCE * PANEL] __attribute__((aligned(64)));
    uint16_t wide[EXPANDED * PANEL] __attribute__((aligned(64)));
    long k = (g->k + 31) / 32 * 32;
    const uint8_t *packed = (const uint8_t *)g->packed + panel * float8_bytes(PANEL, g->k, g->group);
    const float *scales = (const float *)(packed + k * PANEL);
    for (long from = 0; from < k; from += EXPANDED) {
        long count = k - from < EXPANDED ? k - from : EXPANDED;
        expand_inputs(packed, scales, g->group, from, count, wide);
        for (long r = 0; r < rows; r += STEP) {
            long some = rows - r < STEP ? rows - r : STEP;
            dot_rows[some - 1](x + (row + r) * k + from, k, count, wide, sums + r * PANEL, from == 0);
        }
    }
    store_panel(g, sums, row, rows, panel);
}

void avx512bf16_level(struct kernels *to) {
    to->bf16_as_it_is = 1;
    to->expand_float8 = expand_float8;
    to->float8_as_it_is = float8_as_it_is;
    to->bf16_panel = bf16_panel;
}

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
