/* Operations on one row at a time: normalisation, activation, rotary embedding with the KV write. */
#include <math.h>

#include "vector.h"

#define ROWS_PER_TASK 16
#define SMALL 65536 /* elements below which threads cost more than they save */

struct span {
    void (*rows)(const void *job, long from, long to);
    const void *job;
    long m;
};

static void span_task(void *arg, long task) {
    const struct span *span = arg;
    long from = task * ROWS_PER_TASK, to = from + ROWS_PER_TASK;
    span->rows(span->job, from, to < span->m ? to : span->m);
}

static void over_rows(void (*rows)(const void *, long, long), const void *job, long m, long width) {
    struct span span = {rows, job, m};
    if (m * width < SMALL)
        rows(job, 0, m);
    else
        parallel_for(span_task, &span, (m + ROWS_PER_TASK - 1) / ROWS_PER_TASK);
}

INLINE void norm_row(const struct norm *job, long row, enum dtype type) {
    long n = job->n, at = row * n, i = 0;
    vf squares = {0};
    float tail = 0;
    for (; i + LANES <= n; i += LANES) {
        vf v = load(job->residual, at + i, type);
        if (job->x) {
            v += load(job->x, at + i, type);
            store(job->residual, at + i, v, type);
            v = load(job->residual, at + i, type);
        }
        squares += v * v;
    }
    for (; i < n; i++) {
        if (job->x)
            store_one(job->residual, at + i,
                      load_one(job->residual, at + i, type) + load_one(job->x, at + i, type), type);
        float v = load_one(job->residual, at + i, type);
        tail += v * v;
    }
    float scale = 1.0f / sqrtf((sum_lanes(squares) + tail) / n + job->eps);
    for (i = 0; i + LANES <= n; i += LANES)
        store(job->out, at + i, load(job->residual, at + i, type) * scale * load(job->weight, i, type), type);
    for (; i < n; i++)
        store_one(job->out, at + i, load_one(job->residual, at + i, type) * scale * load_one(job->weight, i, type), type);
}

CLONES static void norm_rows(const void *arg, long from, long to) {
    const struct norm *job = arg;
    for (long row = from; row < to; row++) {
        if (job->type == BFLOAT16)
            norm_row(job, row, BFLOAT16);
        else
            norm_row(job, row, FLOAT32);
    }
}

void norm_run(const struct norm *job) { over_rows(norm_rows, job, job->m, job->n); }

INLINE void silu_row(const struct silu *job, long row, enum dtype type) {
    long n = job->n, gate = row * 2 * n, up = gate + n, at = row * n, i = 0;
    for (; i + LANES <= n; i += LANES) {
        vf g = load(job->gate_up, gate + i, type);
        store(job->out, at + i, g / (1.0f + exp_vf(-g)) * load(job->gate_up, up + i, type), type);
    }
    for (; i < n; i++) {
        float g = load_one(job->gate_up, gate + i, type);
        store_one(job->out, at + i, g / (1.0f + expf(-g)) * load_one(job->gate_up, up + i, type), type);
    }
}

CLONES static void silu_rows(const void *arg, long from, long to) {
    const struct silu *job = arg;
    for (long row = from; row < to; row++) {
        if (job->type == BFLOAT16)
            silu_row(job, row, BFLOAT16);
        else
            silu_row(job, row, FLOAT32);
    }
}

void silu_run(const struct silu *job) { over_rows(silu_rows, job, job->m, job->n); }

INLINE void rotate_head(const void *from, long in, void *to, long out, const float *cos, const float *sin, long half,
                        long head_dim, enum dtype type) {
    long i = 0;
    for (; i + LANES <= half; i += LANES) {
        vf a = load(from, in + i, type), b = load(from, in + half + i, type);
        vf c = load_float(cos + i), s = load_float(sin + i);
        store(to, out + i, a * c - b * s, type);
        store(to, out + half + i, b * c + a * s, type);
    }
    for (; i < half; i++) {
        float a = load_one(from, in + i, type), b = load_one(from, in + half + i, type);
        store_one(to, out + i, a * cos[i] - b * sin[i], type);
        store_one(to, out + half + i, b * cos[i] + a * sin[i], type);
    }
    long size = type == BFLOAT16 ? 2 : 4, kept = head_dim - 2 * half;
    memcpy((char *)to + (out + 2 * half) * size, (const char *)from + (in + 2 * half) * size, kept * size);
}

INLINE void rotary_row(const struct rotary *job, long row, enum dtype type) {
    const struct heads *h = &job->h;
    long d = h->head_dim, size = type == BFLOAT16 ? 2 : 4;
    long in = row * (h->heads + 2 * h->kv_heads) * d, out = row * h->heads * d;
    long slot = job->slots[row] * h->kv_heads * d;
    const float *cos = job->cos + job->positions[row] * job->half, *sin = job->sin + job->positions[row] * job->half;
    for (long head = 0; head < h->heads; head++, in += d)
        rotate_head(job->qkv, in, job->q, out + head * d, cos, sin, job->half, d, type);
    for (long head = 0; head < h->kv_heads; head++, in += d)
        rotate_head(job->qkv, in, job->keys, slot + head * d, cos, sin, job->half, d, type);
    memcpy((char *)job->values + slot * size, (const char *)job->qkv + in * size, h->kv_heads * d * size);
}

CLONES static void rotary_rows(const void *arg, long from, long to) {
    const struct rotary *job = arg;
    for (long row = from; row < to; row++) {
        if (job->type == BFLOAT16)
            rotary_row(job, row, BFLOAT16);
        else
            rotary_row(job, row, FLOAT32);
    }
}

void rotary_run(const struct rotary *job) {
    over_rows(rotary_rows, job, job->m, (job->h.heads + 2 * job->h.kv_heads) * job->h.head_dim);
}
