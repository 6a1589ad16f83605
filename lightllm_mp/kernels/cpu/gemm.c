/* Projections x @ weight.T + bias over packed weights: scratch memory and the cut into tasks. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "native.h"

static long padded(long k) { return (k + 31) / 32 * 32; }

struct run {
    const struct gemm *g;
    const void *x; /* [m, k padded for bfloat16 and float8]: as `kernels` wants it */
    long panels;
    atomic_int failed; /* memory was lacking */
};

static long some_rows(long m, long row) { return m - row < MAX_ROWS_AT_ONCE ? m - row : MAX_ROWS_AT_ONCE; }
static long row_chunks(long m) { return (m + MAX_ROWS_AT_ONCE - 1) / MAX_ROWS_AT_ONCE; }

static void gemm_task(void *arg, long task) {
    const struct run *run = arg;
    const struct gemm *g = run->g;
    long panel = task % run->panels, row = task / run->panels * MAX_ROWS_AT_ONCE;
    (g->type == BFLOAT16 ? kernels->bf16_panel : kernels->float_panel)(g, run->x, row, some_rows(g->m, row), panel);
}

/* Memory of this thread for an expanded panel, kept for the next one; NULL where it is lacking. */
static uint16_t *panel_memory(long size) {
    static _Thread_local uint16_t *memory;
    static _Thread_local long has;
    if (has < size) {
        free(memory);
        memory = malloc(size * sizeof *memory);
        has = memory ? size : 0;
    }
    return memory;
}

static void float8_task(void *arg, long task) {
    struct run *run = arg;
    const struct gemm *g = run->g;
    long panel = task % run->panels, row = task / run->panels * MAX_ROWS_AT_ONCE, k = padded(g->k);
    if (g->type == FLOAT32 || !kernels->bf16_as_it_is) {
        kernels->float8_panel(g, run->x, row, some_rows(g->m, row), panel);
        return;
    }
    if (kernels->float8_as_it_is) {
        kernels->float8_as_it_is(g, run->x, row, some_rows(g->m, row), panel);
        return;
    }
    uint16_t *memory = panel_memory(k * PANEL);
    if (memory == NULL) {
        run->failed = 1;
        return;
    }
    kernels->expand_float8((const char *)g->packed + panel * float8_bytes(PANEL, g->k, g->group), memory, k, g->group);
    struct gemm expanded = *g;
    expanded.packed = memory - panel * PANEL * k; /* as if all panels lay there */
    kernels->bf16_panel(&expanded, run->x, row, some_rows(g->m, row), panel);
}

static void pad(const void *from, void *to, long m, long k, long kp, long size) {
    for (long r = 0; r < m; r++) {
        memcpy((char *)to + r * kp * size, (const char *)from + r * k * size, k * size);
        memset((char *)to + (r * kp + k) * size, 0, (kp - k) * size);
    }
}

int gemm_run(const struct gemm *g) {
    long kp = padded(g->k), size = g->type == BFLOAT16 && kernels->bf16_as_it_is ? sizeof(uint16_t) : sizeof(float);
    struct run run = {g, g->x, (g->n + PANEL - 1) / PANEL, 0};
    int widens = g->type == BFLOAT16 && !kernels->bf16_as_it_is, pads = g->type == BFLOAT16 || g->group;
    void *scratch = NULL;
    if (widens || (pads && kp != g->k)) {
        scratch = malloc(g->m * kp * size);
        if (scratch == NULL) return -1;
        if (widens)
            kernels->widen(g->x, scratch, g->m, g->k, kp);
        else
            pad(g->x, scratch, g->m, g->k, kp, size);
        run.x = scratch;
    }
    parallel_for(g->group ? float8_task : gemm_task, &run, run.panels * row_chunks(g->m));
    free(scratch);
    return run.failed ? -1 : 0;
}

/* All weights share one row of tasks: for each chunk of rows, those of the first weight, then those of the next. */
struct quantised_job {
    struct product product; /* of the first weight */
    long tasks_per_chunk;
};

static long panels_of(const struct quantised *w) { return (w->n + OUTPUTS - 1) / OUTPUTS; }
static long tasks_of(const struct quantised *w) { return (panels_of(w) + PANELS_AT_ONCE - 1) / PANELS_AT_ONCE; }

static void quantised_task(void *arg, long task) {
    const struct quantised_job *job = arg;
    struct product product = job->product;
    long row = task / job->tasks_per_chunk * MAX_ROWS_AT_ONCE, left = task % job->tasks_per_chunk;
    for (; left >= tasks_of(product.w); product.w++) {
        left -= tasks_of(product.w);
        product.first += product.w->n;
    }
    long panel = left * PANELS_AT_ONCE, panels = panels_of(product.w) - panel;
    kernels->quantised_panels(&product, row, some_rows(product.x->m, row), panel,
                              panels < PANELS_AT_ONCE ? panels : PANELS_AT_ONCE);
}

int quantised_run(const void *x, const struct quantised *weights, long count, void *out, long m, long k,
                  enum dtype type, enum dtype out_type) {
    if (weights->format == ROWS_FLOAT8) {
        struct gemm g = {x, (const void *)(intptr_t)weights->packed, (const float *)(intptr_t)weights->bias,
                         out, m, weights->n, k, type, out_type, weights->per};
        return gemm_run(&g);
    }
    long blocks = (k + INPUTS - 1) / INPUTS, each = m * blocks;
    char *scratch =
        malloc(each * (INPUTS * sizeof(int16_t) + sizeof(float) + SUMS * (sizeof(int32_t) + sizeof(float))));
    if (scratch == NULL) return -1;
    struct rounded rounded = {.x = x, .m = m, .k = k, .blocks = blocks, .type = type};
    rounded.values = (int16_t *)scratch;
    rounded.scales = (float *)(rounded.values + each * INPUTS);
    rounded.sums = (int32_t *)(rounded.scales + each);
    rounded.weighted = (float *)(rounded.sums + SUMS * each);
    over_rows(kernels->round_rows, &rounded, m, k);
    struct quantised_job job = {{&rounded, weights, out, 0, 0, out_type}, 0};
    for (long i = 0; i < count; i++) {
        job.product.width += weights[i].n;
        job.tasks_per_chunk += tasks_of(&weights[i]);
    }
    parallel_for(quantised_task, &job, job.tasks_per_chunk * row_chunks(m));
    free(scratch);
    return 0;
}
