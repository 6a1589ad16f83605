/* Mixture of experts: the choice, and the products of tokens collected by expert.
 *
 * A token's result does not depend on the others: every product's rows are their own, and its experts are summed in the
 * order in which it chose them. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "native.h"

#define TAKEN -INFINITY /* marks in the place of scores */
#define OUTSIDE -FLT_MAX
#define TINY 1e-20f     /* added to a sum of weights before the division by it: a sigmoid may be 0 */

/* Where the largest of `count` is, the first of equals. */
static long largest(const float *values, long count) {
    long best = 0;
    for (long i = 1; i < count; i++)
        if (values[i] > values[best]) best = i;
    return best;
}

/* The sum of a group's `job->group_best` best scores. */
static float group_score(const struct route *job, const float *scores, long each) {
    float first = -INFINITY, second = -INFINITY;
    for (long i = 0; i < each; i++) {
        if (scores[i] > first) {
            second = first;
            first = scores[i];
        } else if (scores[i] > second) {
            second = scores[i];
        }
    }
    return job->group_best > 1 ? first + second : first;
}

/* Marks the experts of all but the best groups. */
static void keep_groups(const struct route *job, float *scores) {
    long each = job->experts / job->groups;
    float best[MAX_EXPERTS];
    for (long g = 0; g < job->groups; g++) best[g] = group_score(job, scores + g * each, each);
    for (long i = 0; i < job->top_groups; i++) best[largest(best, job->groups)] = TAKEN;
    for (long e = 0; e < job->experts; e++)
        if (best[e / each] != TAKEN) scores[e] = OUTSIDE;
}

static void route_rows(const void *arg, long from, long to) {
    const struct route *job = arg;
    float likely[MAX_EXPERTS], scores[MAX_EXPERTS];
    for (long row = from; row < to; row++) {
        float *weights = job->weights + row * job->top_k, sum = 0;
        kernels->expert_weights(job->logits + row * job->experts, likely, job->experts, job->sigmoid);
        for (long e = 0; e < job->experts; e++) scores[e] = likely[e] + (job->correction ? job->correction[e] : 0);
        if (job->groups > 1) keep_groups(job, scores);
        for (long i = 0; i < job->top_k; i++) {
            long pick = largest(scores, job->experts);
            job->numbers[row * job->top_k + i] = pick;
            sum += weights[i] = likely[pick];
            scores[pick] = TAKEN;
        }
        float whole = job->renormalise ? sum + TINY : 1;
        for (long i = 0; i < job->top_k; i++) weights[i] = weights[i] / whole * job->scale;
    }
}

void route_run(const struct route *job) { over_rows(route_rows, job, job->m, job->experts); }

/* An assignment is a token's i-th expert, number token * top_k + i. */
struct sorted {
    const struct experts *job;
    long *place;  /* [assignments]: where each stands among those sorted by expert; ELSEWHERE: another rank has it */
    long *begin;  /* [experts + 1] */
    void *x;      /* [assignments, k], sorted */
    void *wide;   /* [assignments, 2 * n] */
    void *hidden; /* [assignments, n] */
    float *each;  /* [assignments, k] */
};

static int is_here(const struct experts *job, long a) { return job->numbers[a] >= 0 && job->numbers[a] < job->experts; }

static void sort_assignments(struct sorted *s) {
    const struct experts *job = s->job;
    long count = job->m * job->top_k;
    for (long e = 0; e <= job->experts; e++) s->begin[e] = 0;
    for (long a = 0; a < count; a++)
        if (is_here(job, a)) s->begin[job->numbers[a] + 1]++;
    for (long e = 0; e < job->experts; e++) s->begin[e + 1] += s->begin[e];
    for (long a = 0; a < count; a++) s->place[a] = is_here(job, a) ? s->begin[job->numbers[a]]++ : ELSEWHERE;
    for (long e = job->experts; e > 0; e--) s->begin[e] = s->begin[e - 1];
    s->begin[0] = 0;
}

static void collect_rows(const void *arg, long from, long to) {
    const struct sorted *s = arg;
    long top_k = s->job->top_k, bytes = s->job->k * (s->job->type == BFLOAT16 ? 2 : 4);
    for (long row = from; row < to; row++)
        for (long i = 0; i < top_k; i++) {
            long place = s->place[row * top_k + i];
            if (place != ELSEWHERE) memcpy((char *)s->x + place * bytes, (const char *)s->job->x + row * bytes, bytes);
        }
}

/* Every expert's rows of x [assignments, k] times its weight [n, k]. */
static int multiply_all(const struct sorted *s, const void *x, const void *weights, const float *biases, long parts,
                        void *out, long n, long k, enum dtype out_type) {
    enum dtype type = s->job->type;
    long x_row = k * (type == BFLOAT16 ? 2 : 4), out_row = n * (out_type == BFLOAT16 ? 2 : 4);
    long bytes = packed_bytes(n, k, type);
    for (long e = 0; e < s->job->experts; e++) {
        long begin = s->begin[e], rows = s->begin[e + 1] - begin;
        const void *from = (const char *)x + begin * x_row;
        void *to = (char *)out + begin * out_row;
        const float *bias = biases ? biases + e * n : NULL;
        struct gemm g = {from, (const char *)weights + e * bytes, bias, to, rows, n, k, type, out_type};
        const struct quantised *own = (const struct quantised *)weights + e * parts;
        int failed = 0;
        if (rows) failed = parts ? quantised_run(from, own, parts, to, rows, k, type, out_type) : gemm_run(&g);
        if (failed) return -1;
    }
    return 0;
}

static int run_sorted(struct sorted *s) {
    const struct experts *job = s->job;
    sort_assignments(s);
    long count = s->begin[job->experts];
    over_rows(collect_rows, s, job->m, job->top_k * job->k);
    if (multiply_all(s, s->x, job->gate_up, job->gate_up_bias, job->gate_up_parts, s->wide, 2 * job->n, job->k,
                     job->type) != 0)
        return -1;
    struct activation gate = {s->wide, s->hidden, count, job->n, 1, job->curve, job->type};
    activation_run(&gate);
    if (multiply_all(s, s->hidden, job->down, job->down_bias, job->down_parts, s->each, job->k, job->n, FLOAT32) != 0)
        return -1;
    struct mixing mixing = {s->each, s->place, job->weights, job->out, job->k, job->top_k, job->type};
    over_rows(kernels->mix_rows, &mixing, job->m, job->top_k * job->k);
    return 0;
}

int experts_run(const struct experts *job) {
    long count = job->m * job->top_k, size = job->type == BFLOAT16 ? 2 : 4;
    struct sorted s = {job,
                       malloc(count * sizeof(long)),
                       malloc((job->experts + 1) * sizeof(long)),
                       malloc(count * job->k * size),
                       malloc(count * 2 * job->n * size),
                       malloc(count * job->n * size),
                       malloc(count * job->k * sizeof(float))};
    int failed = s.place && s.begin && s.x && s.wide && s.hidden && s.each ? run_sorted(&s) : -1;
    free(s.place);
    free(s.begin);
    free(s.x);
    free(s.wide);
    free(s.hidden);
    free(s.each);
    return failed;
}
