/* The parts of an attention task that all kernels share: its rows, and the online softmax over a block of keys. */
#define BLOCK 64
#define MAX_ROWS ATTENTION_ROWS

/* A few query tokens of one sequence and the query heads of one key-value head. Row r is token r / group, head
 * r % group of the task. */
struct rows {
    float out[MAX_ROWS * MAX_HEAD_DIM];  /* [rows][head_dim], not yet divided by `sum` */
    float scores[MAX_ROWS * BLOCK];      /* [rows][BLOCK], then the weights */
    float max[MAX_ROWS], sum[MAX_ROWS];
    long first[MAX_ROWS], end[MAX_ROWS]; /* positions of the keys that a row sees */
    const int32_t *slots;                /* of the sequence */
    long count, kv_head;                 /* rows in use */
    long earliest, last;                 /* positions of the keys that any row sees */
    long at[MAX_ROWS], to[MAX_ROWS];     /* where a row begins in q and in the result */
} __attribute__((aligned(64)));

/* Components of a row of the result. */
INLINE long row_width(const struct attention *job) { return job->value_dim ? job->value_dim : job->h.head_dim; }

INLINE void begin_rows(struct rows *s, const struct attention *job, long seq, long query, long count, long kv_head) {
    const struct heads *h = &job->h;
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
        s->max[r] = job->sinks ? job->sinks[head] : -INFINITY;
        s->sum[r] = job->sinks ? 1 : 0;
        s->end[r] = job->full ? context : base + r / group + 1;
        s->first[r] = job->window && s->end[r] > job->window ? s->end[r] - job->window : 0;
        if (job->visible && job->visible[token + r / group] > s->end[r]) s->end[r] = job->visible[token + r / group];
        if (s->end[r] > s->last) s->last = s->end[r];
    }
    memset(s->out, 0, s->count * h->head_dim * sizeof(float));
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
        float inverse = 1.0f / s->sum[r];
        for (long d = 0; d < row_width(job); d += LANES)
            store(job->out, s->to[r] + d, load_float(s->out + r * job->h.head_dim + d) * inverse, type);
    }
}

