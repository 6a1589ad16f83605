/* Operations on one row at a time: normalisation, rotary embedding with the KV write. */
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

void over_rows(void (*rows)(const void *, long, long), const void *job, long m, long width) {
    struct span span = {rows, job, m};
    if (m * width < SMALL)
        rows(job, 0, m);
    else
        parallel_for(span_task, &span, (m + ROWS_PER_TASK - 1) / ROWS_PER_TASK);
}

/* Elements [i, i + LANES) of the row, after `x` was added to them. */
INLINE vf summed(const struct norm *job, long at, long left, enum dtype type) {
    if (job->x) {
        vf sum = load_part(job->residual, at, left, type) + load_part(job->x, at, left, type);
        store_part(job->residual, at, left, sum, type);
    }
    return load_part(job->residual, at, left, type);
}

/* The mean of the squares of the distances from `mean`. */
INLINE float variance(const struct norm *job, long at, float mean, enum dtype type) {
    vf squares = {0};
    EACH_PART(i, left, job->n, {
        vf v = load_part(job->residual, at + i, left, type) - mean;
        for (long j = left; j < LANES; j++) v[j] = 0; /* what lies after the end is not 0 here */
        squares += v * v;
    });
    return sum_lanes(squares) / job->n;
}

INLINE void norm_row(const struct norm *job, long row, enum dtype type, enum dtype weights) {
    long n = job->n, at = row * n, line = row % job->lines * n;
    vf squares = {0}, total = {0};
    EACH_PART(i, left, n, {
        vf v = summed(job, at + i, left, type);
        squares += v * v;
        total += v;
    });
    float mean = job->centred ? sum_lanes(total) / n : 0;
    float spread = job->centred ? variance(job, at, mean, type) : sum_lanes(squares) / n;
    float scale = 1.0f / sqrtf(spread + job->eps);
    EACH_PART(i, left, n, {
        vf v = (load_part(job->residual, at + i, left, type) - mean) * scale;
        v *= load_part(job->weight, line + i, left, weights);
        if (job->bias) v += load_part(job->bias, line + i, left, weights);
        store_part(job->out, at + i, left, v, type);
    });
}

CLONES static void norm_rows(const void *arg, long from, long to) {
    const struct norm *job = arg;
    for (long row = from; row < to; row++) {
        if (job->type == BFLOAT16 && job->weight_type == BFLOAT16)
            norm_row(job, row, BFLOAT16, BFLOAT16);
        else if (job->type == BFLOAT16)
            norm_row(job, row, BFLOAT16, FLOAT32);
        else
            norm_row(job, row, FLOAT32, FLOAT32);
    }
}

void norm_run(const struct norm *job) { over_rows(norm_rows, job, job->m, job->n); }

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
