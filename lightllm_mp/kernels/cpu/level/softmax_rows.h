/* The parts of an attention task that all kernels share: its rows, and the online softmax over a block of keys. */
#define BLOCK 64
#define MAX_ROWS ATTENTION_ROWS

/* A few query tokens of one sequence and the query heads of one key-value head. Row r is token r / group, head
 * r % group of the task. */
struct rows {
    float out[MAX_ROWS * MAX_HEAD_DIM];  /* [rows][head_dim], not yet divided by `sum` */
    float scores[MAX_ROWS * BLOCK];      /* [rows][BLOCK], then the weights */
    float max[MAX_ROWS], sum[MAX_ROWS];  /* of the segment at hand, as `scores` and `out` */
    float all[MAX_ROWS * MAX_HEAD_DIM];  /* what came of the segments before */
    float all_max[MAX_ROWS], all_sum[MAX_ROWS];
    long first[MAX_ROWS], end[MAX_ROWS]; /* positions of the keys that a row sees */
    const int32_t *slots;                /* of the sequence */
    long count, kv_head;                 /* rows in use */
    long earliest, last;                 /* positions of the keys that any row sees */
    long at[MAX_ROWS], to[MAX_ROWS];     /* where a row begins in q and in the result */
} __attribute__((aligned(64)));

/* Components of a row of the result. */
INLINE long row_width(const struct attention *job) { return job->value_dim ? job->value_dim : job->h.head_dim; }

INLINE void begin_segment(struct rows *s, long head_dim) {
    for (long r = 0; r < s->count; r++) {
        s->max[r] = -INFINITY;
        s->sum[r] = 0;
    }
    memset(s->out, 0, s->count * head_dim * sizeof(float));
}

INLINE void begin_rows(struct rows *s, const struct attention *job, struct task task, long segment) {
    const struct heads *h = &job->h;
    long seq = task.seq, query = task.query, count = task.count, kv_head = task.kv_head;
    long group = h->heads / h->kv_heads, context = job->context[seq];
    long new_tokens = job->seq_start[seq + 1] - job->seq_start[seq];
    long token = job->seq_start[seq] + query, base = job->full ? context - count : context - new_tokens + query;
    s->slots = job->slot_table + job->rows[seq] * job->table_width;
    s->count = count * group;
    s->kv_head = kv_head;
    s->last = job->full ? context : base + count;
    s->earliest = job->window && base + 1 > job->window ? base + 1 - job->window : 0;
    for (long r = 0; r < s->count; r++) {
        long head = kv_head * group + r % group;
        s->at[r] = (token + r / group) * job->q_line + head * h->head_dim;
        s->to[r] = ((token + r / group) * h->heads + head) * row_width(job);
        s->all_max[r] = job->sinks ? job->sinks[head] : -INFINITY;
        s->all_sum[r] = job->sinks ? 1 : 0;
        s->end[r] = job->full ? context : base + r / group + 1;
        s->first[r] = job->window && s->end[r] > job->window ? s->end[r] - job->window : 0;
        if (job->visible && job->visible[token + r / group] > s->end[r]) s->end[r] = job->visible[token + r / group];
        if (s->end[r] > s->last) s->last = s->end[r];
    }
    memset(s->all, 0, s->count * h->head_dim * sizeof(float));
    if (segment != ALL_SEGMENTS) {
        long from = segment * ATTENTION_SEGMENT, to = from + ATTENTION_SEGMENT;
        if (s->earliest < from) s->earliest = from;
        if (s->last > to) s->last = to;
    }
    begin_segment(s, h->head_dim);
}

/* Adds what a row gathered over a segment. Never inlined: one and the same code gives the same bits, whoever calls. */
static __attribute__((noinline)) void join_row(struct rows *s, long head_dim, long row, const float *out, float max,
                                               float sum) {
    float *all = s->all + row * head_dim;
    if (max == -INFINITY) return; /* it saw nothing */
    float top = max > s->all_max[row] ? max : s->all_max[row];
    vf before = exp_vf(splat(s->all_max[row] - top)), added = exp_vf(splat(max - top));
    for (long d = 0; d < head_dim; d += LANES)
        store_float(all + d, multiply_add(load_float(all + d), before, load_float(out + d) * added));
    s->all_sum[row] = s->all_sum[row] * before[0] + sum * added[0];
    s->all_max[row] = top;
}

INLINE void end_segment(struct rows *s, long head_dim) {
    for (long r = 0; r < s->count; r++) join_row(s, head_dim, r, s->out + r * head_dim, s->max[r], s->sum[r]);
    begin_segment(s, head_dim);
}

/* The rows' sums, maxima and outputs. */
INLINE void keep_part(const struct rows *s, long head_dim, float *part) {
    memcpy(part, s->max, s->count * sizeof(float));
    memcpy(part + s->count, s->sum, s->count * sizeof(float));
    memcpy(part + 2 * s->count, s->out, s->count * head_dim * sizeof(float));
}

/* Where the key of a position lies in the pool, in elements; -1 where no row sees it: behind the window its slot may
 * belong to another sequence. */
INLINE long key_at(const struct rows *s, const struct attention *job, long position) {
    if (position < s->earliest || position >= s->last) return -1;
    return s->slots[position] * job->kv_line + (job->shared ? 0 : s->kv_head * job->h.head_dim);
}

/* Softcap and alibi, on the scaled scores of a row. */
INLINE void bend_scores(struct rows *s, const struct attention *job, long row, long block) {
    if (!job->softcap && !job->alibi) return;
    static const float lanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    long group = job->h.heads / job->h.kv_heads;
    float slope = job->alibi ? job->alibi[s->kv_head * group + row % group] : 0;
    float *scores = s->scores + row * BLOCK;
    for (int i = 0; i < BLOCK; i += LANES) {
        vf v = load_float(scores + i);
        if (job->softcap) v = job->softcap * tanh_vf(v / job->softcap);
        v += slope * (load_float(lanes) + (float)(block + i + 1 - s->end[row]));
        store_float(scores + i, v);
    }
}

/* Turns a row's scores into weights, rescales what it has gathered. Hidden keys get weight 0. */
INLINE void softmax_row(struct rows *s, long head_dim, long row, long block, long keys) {
    float *scores = s->scores + row * BLOCK;
    long from = s->first[row] - block, to = s->end[row] - block;
    if (from >= keys || to <= 0) { /* the row sees nothing of this block: weights of 0 leave it as it is */
        memset(scores, 0, BLOCK * sizeof *scores);
        return;
    }
    for (long k = 0; k < from; k++) scores[k] = -INFINITY;
    for (long k = to > 0 ? to : 0; k < BLOCK; k++) scores[k] = -INFINITY;
    vf top = load_float(scores);
    for (int i = LANES; i < BLOCK; i += LANES) top = larger(load_float(scores + i), top);
    float max = max_lanes(larger(top, splat(s->max[row])));
    vf total = {0};
    for (int i = 0; i < BLOCK; i += LANES) {
        vf weight = exp_vf(load_float(scores + i) - max);
        store_float(scores + i, weight);
        total += weight;
    }
    float shrink = exp_vf(splat(s->max[row] - max))[0];
    s->sum[row] = s->sum[row] * shrink + sum_lanes(total);
    s->max[row] = max;
    for (long d = 0; d < head_dim; d += LANES) {
        vf v = load_float(s->out + row * head_dim + d) * shrink;
        store_float(s->out + row * head_dim + d, v);
    }
}

INLINE void finish_rows(const struct rows *s, const struct attention *job, enum dtype type) {
    for (long r = 0; r < s->count; r++) {
        float inverse = 1.0f / s->all_sum[r];
        for (long d = 0; d < row_width(job); d += LANES)
            store(job->out, s->to[r] + d, load_float(s->all + r * job->h.head_dim + d) * inverse, type);
    }
}

INLINE void end_rows(struct rows *s, const struct attention *job, float *part) {
    if (part) {
        keep_part(s, job->h.head_dim, part);
        return;
    }
    end_segment(s, job->h.head_dim);
    if (job->type == BFLOAT16)
        finish_rows(s, job, BFLOAT16);
    else
        finish_rows(s, job, FLOAT32);
}
