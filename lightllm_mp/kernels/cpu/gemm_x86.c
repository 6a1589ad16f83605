/* Bfloat16 projections with AVX512-BF16 and AMX. The row order of a packed panel suits both. */
#include "vector.h"

#if HAVE_X86_KERNELS
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "amx.h"

#define ARCH_REQ_XCOMP_PERM 0x1023
#define XFEATURE_XTILEDATA 18
#define AHEAD 4096 /* bytes */

static int detect(void) {
    const char *limit = getenv("LIGHTLLM_MP_CPU_LEVEL"); /* 0..2: for tests and for comparing */
    int most = limit ? atoi(limit) : 2;
    unsigned a, b, c, d;
    __builtin_cpu_init();
    int bf16 = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vl");
    __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(0));
    int amx = (d >> 22 & 1) && (d >> 24 & 1) && bf16;
    if (most >= 2 && amx && syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0) return 2;
    return most >= 1 && bf16 ? 1 : 0;
}

int x86_level(void) {
    static int level = -1;
    if (level < 0) level = detect();
    return level;
}

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))
#define STEP 8

#define BF16_ROWS(rows)                                                                              \
    AVX512 static void dot_rows_##rows(const uint16_t *x, long k, const uint16_t *packed, float *sums) { \
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

void gemm_avx512_bf16(const struct gemm *g, const uint16_t *x, long row, long rows, long panel) {
    static void (*const dot_rows[])(const uint16_t *, long, const uint16_t *, float *) = {
        dot_rows_1, dot_rows_2, dot_rows_3, dot_rows_4, dot_rows_5, dot_rows_6, dot_rows_7, dot_rows_8};
    long k = (g->k + 31) / 32 * 32;
    const uint16_t *packed = (const uint16_t *)g->packed + panel * PANEL * k;
    float sums[STEP * PANEL] __attribute__((aligned(64)));
    for (long r = 0; r < rows; r += STEP) {
        long some = rows - r < STEP ? rows - r : STEP;
        dot_rows[some - 1](x + (row + r) * k, k, packed, sums);
        store_panel(g, sums, row + r, some, panel);
    }
}

/* `store_panel` for the usual case, a whole panel to bfloat16. */
AMX static void store_whole(const struct gemm *g, const float *sums, long row, long rows, long panel) {
    const float *bias = g->bias ? g->bias + panel * PANEL : NULL;
    uint16_t *out = (uint16_t *)g->out + row * g->n + panel * PANEL;
    for (long r = 0; r < rows; r++, sums += PANEL, out += g->n) {
        __m512 left = _mm512_loadu_ps(sums), right = _mm512_loadu_ps(sums + LANES);
        if (bias) {
            left = _mm512_add_ps(left, _mm512_loadu_ps(bias));
            right = _mm512_add_ps(right, _mm512_loadu_ps(bias + LANES));
        }
        _mm512_storeu_si512(out, (__m512i)_mm512_cvtne2ps_pbh(right, left));
    }
}

AMX static void tiles_one(const uint16_t *x, long k, const uint16_t *packed, float *sums) {
    _tile_zero(0);
    _tile_zero(1);
    for (long i = 0; i < k; i += 32) {
        for (int line = 0; line < 32; line++) /* weights are read once: the next page would not be prefetched */
            _mm_prefetch((const char *)(packed + i * PANEL) + AHEAD + line * 64, _MM_HINT_T0);
        _tile_loadd(4, x + i, k * 2);
        _tile_loadd(6, packed + i * PANEL, PANEL * 4);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, packed + i * PANEL + 2 * LANES, PANEL * 4);
        _tile_dpbf16ps(1, 4, 7);
    }
    _tile_stored(0, sums, PANEL * 4);
    _tile_stored(1, sums + LANES, PANEL * 4);
}

AMX static void tiles_two(const uint16_t *x, long k, const uint16_t *packed, float *sums) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (long i = 0; i < k; i += 32) {
        _tile_loadd(4, x + i, k * 2);
        _tile_loadd(6, packed + i * PANEL, PANEL * 4);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, packed + i * PANEL + 2 * LANES, PANEL * 4);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, x + TILE_ROWS * k + i, k * 2);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums, PANEL * 4);
    _tile_stored(1, sums + LANES, PANEL * 4);
    _tile_stored(2, sums + TILE_ROWS * PANEL, PANEL * 4);
    _tile_stored(3, sums + TILE_ROWS * PANEL + LANES, PANEL * 4);
}

AMX void gemm_amx_bf16(const struct gemm *g, const uint16_t *x, long row, long rows, long panel) {
    long k = (g->k + 31) / 32 * 32;
    const uint16_t *packed = (const uint16_t *)g->packed + panel * PANEL * k;
    float sums[2 * TILE_ROWS * PANEL] __attribute__((aligned(64)));
    int upper_now = -1, lower_now = -1;
    for (long r = 0; r < rows; r += 2 * TILE_ROWS) {
        long some = rows - r < 2 * TILE_ROWS ? rows - r : 2 * TILE_ROWS;
        int upper = some < TILE_ROWS ? some : TILE_ROWS, lower = some - upper;
        if (upper != upper_now || lower != lower_now) configure(upper, lower);
        upper_now = upper;
        lower_now = lower;
        if (lower)
            tiles_two(x + (row + r) * k, k, packed, sums);
        else
            tiles_one(x + (row + r) * k, k, packed, sums);
        if (g->out_type == BFLOAT16 && (panel + 1) * PANEL <= g->n)
            store_whole(g, sums, row + r, some, panel);
        else
            store_panel(g, sums, row + r, some, panel);
    }
    _tile_release();
}

#else
int x86_level(void) { return 0; }
void gemm_avx512_bf16(const struct gemm *g, const uint16_t *x, long row, long rows, long panel) {
    (void)g, (void)x, (void)row, (void)rows, (void)panel;
}
void gemm_amx_bf16(const struct gemm *g, const uint16_t *x, long row, long rows, long panel) {
    (void)g, (void)x, (void)row, (void)rows, (void)panel;
}
#endif
