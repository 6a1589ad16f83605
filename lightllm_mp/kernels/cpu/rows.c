/* Work on rows, shared out among threads. */
#include "native.h"

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

void norm_run(const struct norm *job) { over_rows(kernels->norm_rows, job, job->m, job->n); }

void squares_run(const struct squares *job) { over_rows(kernels->squares_rows, job, job->m, job->n); }

void activation_run(const struct activation *job) { over_rows(kernels->activation_rows, job, job->m, job->n); }

void sigmoid_gate_run(const struct sigmoid_gate *job) { over_rows(kernels->gate_rows, job, job->m, job->n); }

void rotary_run(const struct rotary *job) {
    over_rows(kernels->rotary_rows, job, job->m, (job->h.heads + 2 * job->h.kv_heads) * job->h.head_dim);
}

struct tiling {
    const struct attention *job;
    long queries; /* query tokens of a task */
    long tiles;   /* tasks per sequence and key-value head */
};

static void attention_task(void *arg, long task) {
    const struct tiling *t = arg;
    const struct attention *job = t->job;
    long kv_head = task % job->h.kv_heads, rest = task / job->h.kv_heads;
    /* The last tiles of a sequence see the most keys: they go first, so that no thread is left alone with one. */
    long seq = rest % job->sequences, query = (t->tiles - 1 - rest / job->sequences) * t->queries;
    long left = job->seq_start[seq + 1] - job->seq_start[seq] - query;
    if (left > 0) kernels->attend(job, seq, query, left < t->queries ? left : t->queries, kv_head);
}

void attention_run(const struct attention *job) {
    struct tiling t = {job, ATTENTION_ROWS / (job->h.heads / job->h.kv_heads), 0};
    t.tiles = (job->max_query + t.queries - 1) / t.queries;
    parallel_for(attention_task, &t, t.tiles * job->sequences * job->h.kv_heads);
}

static void delta_task(void *arg, long task) {
    const struct delta *job = arg;
    kernels->delta_heads(job, task / job->key_heads, task % job->key_heads);
}

void delta_run(const struct delta *job) { parallel_for(delta_task, (void *)job, job->sequences * job->key_heads); }
