/* Work on rows, shared out among threads. */
#include "native.h"

#include <stdlib.h>

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
    long queries;  /* query tokens of a task */
    long tiles;    /* tasks per sequence and key-value head */
    long segments; /* of the longest context */
    float *parts;  /* [sequences, kv_heads, segments, part] */
    long part;     /* floats */
};

static struct task attention_task(const struct tiling *t, long number) {
    const struct attention *job = t->job;
    long kv_head = number % job->h.kv_heads, rest = number / job->h.kv_heads;
    /* The last tiles of a sequence see the most keys: they go first, so that no thread is left alone with one. */
    long seq = rest % job->sequences, query = (t->tiles - 1 - rest / job->sequences) * t->queries;
    long left = job->seq_start[seq + 1] - job->seq_start[seq] - query;
    return (struct task){seq, query, left < t->queries ? left : t->queries, kv_head};
}

static void attend_all(void *arg, long number) {
    const struct tiling *t = arg;
    struct task task = attention_task(t, number);
    if (task.count > 0) kernels->attend(t->job, task, ALL_SEGMENTS, NULL);
}

static void attend_segment(void *arg, long number) {
    const struct tiling *t = arg;
    struct task task = attention_task(t, number / t->segments);
    if (task.count > 0) kernels->attend(t->job, task, number % t->segments, t->parts + number * t->part);
}

static void join_segments(void *arg, long number) {
    const struct tiling *t = arg;
    struct task task = attention_task(t, number);
    if (task.count > 0) kernels->join_parts(t->job, task, t->parts + number * t->segments * t->part, t->segments);
}

/* Few tasks of long contexts are divided by segments of the keys, so that all threads have work. Undivided ones sum up by
 * the same segments: the bits are equal. */
static long segments_of(const struct attention *job, long tasks) {
    long longest = 0;
    if (job->max_query > 1 || tasks >= 4 * thread_count() || thread_count() == 1) return 1;
    for (long seq = 0; seq < job->sequences; seq++)
        if (job->context[seq] > longest) longest = job->context[seq];
    return (longest + ATTENTION_SEGMENT - 1) / ATTENTION_SEGMENT;
}

void attention_run(const struct attention *job) {
    long group = job->h.heads / job->h.kv_heads;
    struct tiling t = {job, ATTENTION_ROWS / group, 0, 1, NULL, group * (job->h.head_dim + 2)};
    t.tiles = (job->max_query + t.queries - 1) / t.queries;
    long tasks = t.tiles * job->sequences * job->h.kv_heads;
    t.segments = segments_of(job, tasks);
    if (t.segments > 1) t.parts = malloc(tasks * t.segments * t.part * sizeof(float));
    if (!t.parts) {
        parallel_for(attend_all, &t, tasks);
        return;
    }
    parallel_for(attend_segment, &t, tasks * t.segments);
    parallel_for(join_segments, &t, tasks);
    free(t.parts);
}

static void delta_task(void *arg, long task) {
    const struct delta *job = arg;
    kernels->delta_heads(job, task / job->key_heads, task % job->key_heads);
}

void delta_run(const struct delta *job) { parallel_for(delta_task, (void *)job, job->sequences * job->key_heads); }
