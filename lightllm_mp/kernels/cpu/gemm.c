/* Projections x @ weight.T + bias over packed weights.
 *
 * Each output is one accumulator that takes its products in order of k, so a row does not depend on the others. */
#include <stdlib.h>

#include "vector.h"

#define MAX_ROWS 8      /* rows of x that share one pass over a panel */
#define CHUNK 128       /* rows per task */

static long panels(long n) { return (n + PANEL - 1) / PANEL; }
static long padded_k(long k, enum dtype type) { return type == BFLOAT16 ? (k + 31) / 32 * 32 : k; }

long packed_bytes(long n, long k, enum dtype type) {
    return panels(n) * PANEL * padded_k(k, type) * (type == BFLOAT16 ? 2 : 4);
}

struct pack {
    const void *weight;
    void *packed;
    long n, k;
    enum dtype type;
};

static void pack_panel(void *arg, long panel) {
    const struct pack *job = arg;
    long kp = padded_k(job->k, job->type);
    for (long c = 0; c < PANEL; c++) {
        long row = panel * PANEL + c;
        for (long k = 0; k < kp; k++) {
            int inside = row < job->n && k < job->k;
            long from = row * job->k + k;
            if (job->type == BFLOAT16)
                ((uint16_t *)job->packed)[panel * PANEL * kp + (k / 2 * PANEL + c) * 2 + k % 2] =
                    inside ? ((const uint16_t *)job->weight)[from] : 0;
            else
                ((float *)job->packed)[panel * PANEL * kp + k * PANEL + c] =
                    inside ? ((const float *)job->weight)[from] : 0;
        }
    }
}

void pack_weight(const void *weight, void *packed, long n, long k, enum dtype type) {
    struct pack job = {weight, packed, n, k, type};
    parallel_for(pack_panel, &job, panels(n));
}

/* Writes `rows` rows of PANEL sums: adds the bias, rounds, leaves out the padding columns. */
CLONES void store_panel(const struct gemm *g, const float *sums, long row, long rows, long panel) {
    long first = panel * PANEL, width = g->n - first < PANEL ? g->n - first : PANEL;
    for (long r = 0; r < rows; r++) {
        const float *s = sums + r * PANEL;
        long at = (row + r) * g->n + first;
        if (width == PANEL) {
            for (int i = 0; i < PANEL; i += LANES) {
                vf v = load_float(s + i);
                if (g->bias) v += load_float(g->bias + first + i);
                if (g->out_type == BFLOAT16)
                    store(g->out, at + i, v, BFLOAT16);
                else
                    store(g->out, at + i, v, FLOAT32);
            }
        } else {
            for (long i = 0; i < width; i++)
                store_one(g->out, at + i, s[i] + (g->bias ? g->bias[first + i] : 0), g->out_type);
        }
    }
}

/* x as float32 [rows, k] times one panel; the number of rows and the type are constants in each copy. */
INLINE void multiply(const float *x, long k, const void *packed, enum dtype type, const int rows, float *sums) {
    vf acc[MAX_ROWS][2];
    for (int r = 0; r < rows; r++) acc[r][0] = acc[r][1] = (vf){0};
    if (type == FLOAT32) {
        for (long i = 0; i < k; i++) {
            vf b0 = load_float((const float *)packed + i * PANEL), b1 = load_float((const float *)packed + i * PANEL + LANES);
            for (int r = 0; r < rows; r++) {
                acc[r][0] += x[r * k + i] * b0;
                acc[r][1] += x[r * k + i] * b1;
            }
        }
    } else {
        for (long i = 0; i < k; i += 2) { /* a 32-bit word holds two values of k: the low half is the even one */
            vu w0 = (vu)load_float((const uint16_t *)packed + i * PANEL);
            vu w1 = (vu)load_float((const uint16_t *)packed + i * PANEL + 2 * LANES);
            vf even0 = (vf)(w0 << 16), even1 = (vf)(w1 << 16);
            vf odd0 = (vf)(w0 & 0xffff0000u), odd1 = (vf)(w1 & 0xffff0000u);
            for (int r = 0; r < rows; r++) {
                acc[r][0] += x[r * k + i] * even0;
                acc[r][1] += x[r * k + i] * even1;
            }
            for (int r = 0; r < rows; r++) {
                acc[r][0] += x[r * k + i + 1] * odd0;
                acc[r][1] += x[r * k + i + 1] * odd1;
            }
        }
    }
    for (int r = 0; r < rows; r++) {
        memcpy(sums + r * PANEL, &acc[r][0], sizeof(vf));
        memcpy(sums + r * PANEL + LANES, &acc[r][1], sizeof(vf));
    }
}

INLINE void multiply_rows(const float *x, long k, const void *packed, enum dtype type, long rows, float *sums) {
    switch (rows) {
        case 1: multiply(x, k, packed, type, 1, sums); break;
        case 2: multiply(x, k, packed, type, 2, sums); break;
        case 3: multiply(x, k, packed, type, 3, sums); break;
        case 4: multiply(x, k, packed, type, 4, sums); break;
        case 5: multiply(x, k, packed, type, 5, sums); break;
        case 6: multiply(x, k, packed, type, 6, sums); break;
        case 7: multiply(x, k, packed, type, 7, sums); break;
        default: multiply(x, k, packed, type, 8, sums); break;
    }
}

CLONES static void multiply_float(const float *x, long k, const void *packed, long rows, float *sums) {
    multiply_rows(x, k, packed, FLOAT32, rows, sums);
}

CLONES static void multiply_bf16(const float *x, long k, const void *packed, long rows, float *sums) {
    multiply_rows(x, k, packed, BFLOAT16, rows, sums);
}

struct run {
    const struct gemm *g;
    const void *x; /* [m, kp]: float32 for the portable kernel, else as in g */
    long kp, panels;
    int level, step;
};

static void portable_panel(const struct run *run, long row, long rows, long panel) {
    const struct gemm *g = run->g;
    const char *packed = (const char *)g->packed + panel * PANEL * run->kp * (g->type == BFLOAT16 ? 2 : 4);
    float sums[MAX_ROWS * PANEL] __attribute__((aligned(64)));
    for (long r = 0; r < rows; r += run->step) {
        long some = rows - r < run->step ? rows - r : run->step;
        const float *x = (const float *)run->x + (row + r) * run->kp;
        if (g->type == BFLOAT16)
            multiply_bf16(x, run->kp, packed, some, sums);
        else
            multiply_float(x, run->kp, packed, some, sums);
        store_panel(g, sums, row + r, some, panel);
    }
}

static void gemm_task(void *arg, long task) {
    const struct run *run = arg;
    long panel = task % run->panels, row = task / run->panels * CHUNK;
    long rows = run->g->m - row < CHUNK ? run->g->m - row : CHUNK;
    if (run->level == 2)
        gemm_amx_bf16(run->g, (const uint16_t *)run->x, row, rows, panel);
    else if (run->level == 1)
        gemm_avx512_bf16(run->g, (const uint16_t *)run->x, row, rows, panel);
    else
        portable_panel(run, row, rows, panel);
}

CLONES static void widen(const uint16_t *from, float *to, long m, long k, long kp) {
    for (long r = 0; r < m; r++) {
        long i = 0;
        for (; i + LANES <= k; i += LANES) store(to, r * kp + i, load_bf16(from + r * k + i), FLOAT32);
        for (; i < kp; i++) to[r * kp + i] = i < k ? bf16_float(from[r * k + i]) : 0;
    }
}

static void pad(const uint16_t *from, uint16_t *to, long m, long k, long kp) {
    for (long r = 0; r < m; r++) {
        memcpy(to + r * kp, from + r * k, k * sizeof *to);
        memset(to + r * kp + k, 0, (kp - k) * sizeof *to);
    }
}

static int row_step(void) {
#if HAVE_X86_KERNELS
    return __builtin_cpu_supports("avx512f") ? MAX_ROWS : 3; /* what fits 32 or 16 registers */
#else
    return 4;
#endif
}

int gemm_run(const struct gemm *g) {
    long kp = padded_k(g->k, g->type);
    struct run run = {g, g->x, kp, panels(g->n), g->type == BFLOAT16 ? x86_level() : 0, row_step()};
    void *scratch = NULL;
    if (g->type == BFLOAT16 && (run.level == 0 || kp != g->k)) {
        scratch = malloc(g->m * kp * (run.level == 0 ? sizeof(float) : sizeof(uint16_t)));
        if (scratch == NULL) return -1;
        if (run.level == 0)
            widen(g->x, scratch, g->m, g->k, kp);
        else
            pad(g->x, scratch, g->m, g->k, kp);
        run.x = scratch;
    }
    parallel_for(gemm_task, &run, run.panels * ((g->m + CHUNK - 1) / CHUNK));
    free(scratch);
    return 0;
}
