/* Products of float32, bfloat16 and float8 weights in float32.
 *
 * Each output is one accumulator that takes its products in order of k, so a row does not depend on the others.
 * A level says how many rows and vectors of a panel it keeps in registers: TILE_M and TILE_N. */
#define VECTORS (PANEL / LANES) /* of a panel */
#define WIDENED 128             /* inputs of a bfloat16 panel that are made float32 at once */
#define FEW_ROWS 4              /* so many take bfloat16 as it is */

#include "float8.h"
#include "store.h"

/* What `multiply` reads: x [rows, k] with lines `stride` apart, and a part of a panel. */
struct operands {
    const float *x;
    long stride, k;
    const void *packed;
};

/* Adds to (or, if `begin`, sets) the sums of `vecs` vectors of a panel; the number of rows and of vectors are constants
 * in each copy. */
INLINE void multiply(const struct operands *o, enum dtype type, const int rows, const int vecs, float *sums, int begin) {
    vf acc[TILE_M][VECTORS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vecs; v++) acc[r][v] = begin ? (vf){0} : load_float(sums + r * PANEL + v * LANES);
    if (type == FLOAT32) {
        for (long i = 0; i < o->k; i++) {
            vf b[VECTORS];
            for (int v = 0; v < vecs; v++) b[v] = load_float((const float *)o->packed + i * PANEL + v * LANES);
            for (int r = 0; r < rows; r++) {
                vf a = splat(o->x[r * o->stride + i]);
                for (int v = 0; v < vecs; v++) acc[r][v] = multiply_add(a, b[v], acc[r][v]);
            }
        }
    } else {
        for (long i = 0; i < o->k; i += 2) { /* a 32-bit word holds two values of k: the low half is the even one */
            vf even[VECTORS], odd[VECTORS];
            for (int v = 0; v < vecs; v++) {
                vu word = (vu)load_float((const uint16_t *)o->packed + i * PANEL + v * 2 * LANES);
                even[v] = (vf)(word << 16);
                odd[v] = (vf)(word & 0xffff0000u);
            }
            for (int r = 0; r < rows; r++) {
                vf a = splat(o->x[r * o->stride + i]);
                for (int v = 0; v < vecs; v++) acc[r][v] = multiply_add(a, even[v], acc[r][v]);
            }
            for (int r = 0; r < rows; r++) {
                vf a = splat(o->x[r * o->stride + i + 1]);
                for (int v = 0; v < vecs; v++) acc[r][v] = multiply_add(a, odd[v], acc[r][v]);
            }
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vecs; v++) store_float(sums + r * PANEL + v * LANES, acc[r][v]);
}

/* A whole panel: all of it for a lone row, else in parts that fit the registers. */
INLINE void multiply_panel(const struct operands *whole, enum dtype type, const int rows, float *sums, int begin) {
    const int vecs = (rows == 1 && VECTORS <= 4) || TILE_N > VECTORS ? VECTORS : TILE_N;
    for (int v = 0; v < VECTORS; v += vecs) {
        struct operands part = *whole;
        part.packed = (const char *)whole->packed + v * LANES * 4; /* also for pairs of bfloat16 */
        multiply(&part, type, rows, vecs, sums + v * LANES, begin);
    }
}

INLINE void multiply_few(const struct operands *o, enum dtype type, long rows, float *sums, int begin) {
    switch (rows) {
        case 1: multiply_panel(o, type, 1, sums, begin); break;
        case 2: multiply_panel(o, type, 2, sums, begin); break;
        case 3: multiply_panel(o, type, 3, sums, begin); break;
        default: multiply_panel(o, type, 4, sums, begin); break;
    }
}

INLINE void multiply_rows(struct operands o, long rows, float *sums, int begin) {
    for (; rows >= TILE_M; rows -= TILE_M, o.x += TILE_M * o.stride, sums += TILE_M * PANEL)
        multiply_panel(&o, FLOAT32, TILE_M, sums, begin);
    for (; rows > 0; rows -= 4, o.x += 4 * o.stride, sums += 4 * PANEL) multiply_few(&o, FLOAT32, rows, sums, begin);
}

static void float_panel(const struct gemm *g, const void *x, long row, long rows, long panel) {
    float sums[MAX_ROWS_AT_ONCE * PANEL] __attribute__((aligned(64)));
    struct operands o = {(const float *)x + row * g->k, g->k, g->k, (const float *)g->packed + panel * PANEL * g->k};
    multiply_rows(o, rows, sums, 1);
    store_panel(g, sums, row, rows, panel);
}

/* Inputs [from, from + count) of a bfloat16 panel as float32 [count][PANEL]. */
INLINE void widen_panel(const uint16_t *packed, long from, long count, float *wide) {
    for (long i = 0; i < count; i += 2) {
        for (int v = 0; v < PANEL; v += LANES) {
            vu word = (vu)load_float(packed + (from + i) * PANEL + 2 * v);
            store(wide, i * PANEL + v, (vf)(word << 16), FLOAT32);
            store(wide, (i + 1) * PANEL + v, (vf)(word & 0xffff0000u), FLOAT32);
        }
    }
}

static void bf16_panel(const struct gemm *g, const void *x, long row, long rows, long panel) {
    float sums[MAX_ROWS_AT_ONCE * PANEL] __attribute__((aligned(64)));
    float wide[WIDENED * PANEL] __attribute__((aligned(64)));
    long k = (g->k + 31) / 32 * 32;
    const uint16_t *packed = (const uint16_t *)g->packed + panel * PANEL * k;
    struct operands o = {(const float *)x + row * k, k, k, packed};
    if (rows <= FEW_ROWS) {
        multiply_few(&o, BFLOAT16, rows, sums, 1);
    } else {
        o.packed = wide;
        for (long from = 0; from < k; from += WIDENED, o.x += WIDENED) {
            o.k = k - from < WIDENED ? k - from : WIDENED;
            widen_panel(packed, from, o.k, wide);
            multiply_rows(o, rows, sums, from == 0);
        }
    }
    store_panel(g, sums, row, rows, panel);
}

static void float8_panel(const struct gemm *g, const void *x, long row, long rows, long panel) {
    float sums[MAX_ROWS_AT_ONCE * PANEL] __attribute__((aligned(64)));
    float wide[WIDENED * PANEL] __attribute__((aligned(64)));
    long k = (g->k + 31) / 32 * 32;
    const uint8_t *packed = (const uint8_t *)g->packed + panel * float8_bytes(PANEL, g->k, g->group);
    const float *scales = (const float *)(packed + k * PANEL);
    struct operands o = {(const float *)x + row * k, k, 0, wide};
    for (long from = 0; from < k; from += WIDENED, o.x += WIDENED) {
        o.k = k - from < WIDENED ? k - from : WIDENED;
        EACH_FOUR_OF_FLOAT8(packed, scales, g->group, from, o.k, {
            store_float(wide + j * PANEL + v, w0);
            store_float(wide + (j + 1) * PANEL + v, w1);
            store_float(wide + (j + 2) * PANEL + v, w2);
            store_float(wide + (j + 3) * PANEL + v, w3);
        })
        multiply_rows(o, rows, sums, from == 0);
    }
    store_panel(g, sums, row, rows, panel);
}

/* The nearest bfloat16, ties to even, in the upper half of a word. */
INLINE vu rounded_words(vf v) { return (vu)v + 0x7fff + ((vu)v >> 16 & 1); }

static void expand_float8(const void *panel, uint16_t *to, long k, long group) {
    const uint8_t *packed = panel;
    const float *scales = (const float *)(packed + k * PANEL);
    EACH_FOUR_OF_FLOAT8(packed, scales, group, 0, k, {
        vu first = rounded_words(w0) >> 16 | (rounded_words(w1) & 0xffff0000u);
        vu second = rounded_words(w2) >> 16 | (rounded_words(w3) & 0xffff0000u);
        store_float(to + j * PANEL + 2 * v, (vf)first);
        store_float(to + (j + 2) * PANEL + 2 * v, (vf)second);
    })
}

static void widen(const uint16_t *from, float *to, long m, long k, long kp) {
    for (long r = 0; r < m; r++) {
        long i = 0;
        for (; i + LANES <= k; i += LANES) store(to, r * kp + i, load_bf16(from + r * k + i), FLOAT32);
        for (; i < kp; i++) to[r * kp + i] = i < k ? bf16_float(from[r * k + i]) : 0;
    }
}
