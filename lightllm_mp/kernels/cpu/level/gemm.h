/* Products of float32 and bfloat16 weights in float32.
 *
 * Each output is one accumulator that takes its products in order of k, so a row does not depend on the others.
 * A level says how many rows and vectors of a panel it keeps in registers: TILE_M and TILE_N. */
#define VECTORS (PANEL / LANES) /* of a panel */

#include "store.h"

/* x [rows, k] times `vecs` vectors of a panel; the number of rows and of vectors are constants in each copy. */
INLINE void multiply(const float *x, long k, const void *packed, enum dtype type, const int rows, const int vecs,
                     float *sums) {
    vf acc[TILE_M][VECTORS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vecs; v++) acc[r][v] = (vf){0};
    if (type == FLOAT32) {
        for (long i = 0; i < k; i++) {
            vf b[VECTORS];
            for (int v = 0; v < vecs; v++) b[v] = load_float((const float *)packed + i * PANEL + v * LANES);
            for (int r = 0; r < rows; r++) {
                float a = x[r * k + i];
                for (int v = 0; v < vecs; v++) acc[r][v] += a * b[v];
            }
        }
    } else {
        for (long i = 0; i < k; i += 2) { /* a 32-bit word holds two values of k: the low half is the even one */
            vf even[VECTORS], odd[VECTORS];
            for (int v = 0; v < vecs; v++) {
                vu word = (vu)load_float((const uint16_t *)packed + i * PANEL + v * 2 * LANES);
                even[v] = (vf)(word << 16);
                odd[v] = (vf)(word & 0xffff0000u);
            }
            for (int r = 0; r < rows; r++) {
                float a = x[r * k + i];
                for (int v = 0; v < vecs; v++) acc[r][v] += a * even[v];
            }
            for (int r = 0; r < rows; r++) {
                float a = x[r * k + i + 1];
                for (int v = 0; v < vecs; v++) acc[r][v] += a * odd[v];
            }
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vecs; v++) memcpy(sums + r * PANEL + v * LANES, &acc[r][v], sizeof(vf));
}

/* A whole panel: few rows at once, or parts of it that fit the registers. */
INLINE void multiply_panel(const float *x, long k, const void *packed, enum dtype type, const int rows, float *sums) {
    const int vecs = rows == 1 || TILE_N > VECTORS ? VECTORS : TILE_N;
    long size = type == BFLOAT16 ? 2 * 2 : 4;
    for (int v = 0; v < VECTORS; v += vecs)
        multiply(x, k, (const char *)packed + v * LANES * size, type, rows, vecs, sums + v * LANES);
}

INLINE void multiply_rows(const float *x, long k, const void *packed, enum dtype type, long rows, float *sums) {
    switch (rows) {
        case 1: multiply_panel(x, k, packed, type, 1, sums); break;
        case 2: multiply_panel(x, k, packed, type, 2, sums); break;
        case 3: multiply_panel(x, k, packed, type, 3, sums); break;
#if TILE_M > 4
        case 4: multiply_panel(x, k, packed, type, 4, sums); break;
        case 5: multiply_panel(x, k, packed, type, 5, sums); break;
#endif
#if TILE_M > 6
        case 6: multiply_panel(x, k, packed, type, 6, sums); break;
        case 7: multiply_panel(x, k, packed, type, 7, sums); break;
#endif
        default: multiply_panel(x, k, packed, type, TILE_M, sums); break;
    }
}

INLINE void whole_panel(const struct gemm *g, const float *x, long row, long rows, long panel, enum dtype type) {
    long k = type == BFLOAT16 ? (g->k + 31) / 32 * 32 : g->k;
    const char *packed = (const char *)g->packed + panel * PANEL * k * (type == BFLOAT16 ? 2 : 4);
    float sums[TILE_M * PANEL] __attribute__((aligned(64)));
    for (long r = 0; r < rows; r += TILE_M) {
        long some = rows - r < TILE_M ? rows - r : TILE_M;
        multiply_rows(x + (row + r) * k, k, packed, type, some, sums);
        store_panel(g, sums, row + r, some, panel);
    }
}

static void float_panel(const struct gemm *g, const void *x, long row, long rows, long panel) {
    whole_panel(g, x, row, rows, panel, FLOAT32);
}

static void bf16_panel(const struct gemm *g, const void *x, long row, long rows, long panel) {
    whole_panel(g, x, row, rows, panel, BFLOAT16);
}

static void widen(const uint16_t *from, float *to, long m, long k, long kp) {
    for (long r = 0; r < m; r++) {
        long i = 0;
        for (; i + LANES <= k; i += LANES) store(to, r * kp + i, load_bf16(from + r * k + i), FLOAT32);
        for (; i < kp; i++) to[r * kp + i] = i < k ? bf16_float(from[r * k + i]) : 0;
    }
}
