/* What a mixture of experts needs besides products: the weights of a choice, and the weighted sum of a token's experts. */
static void softmax(const float *logits, float *to, long count) {
    float top = logits[0];
    for (long i = 1; i < count; i++)
        if (logits[i] > top) top = logits[i];
    vf total = {0};
    EACH_PART(i, left, count, {
        vf v = exp_vf(load_part(logits, i, left, FLOAT32) - top);
        for (long j = left; j < LANES; j++) v[j] = 0;
        store_part(to, i, left, v, FLOAT32);
        total += v;
    });
    float sum = sum_lanes(total);
    for (long i = 0; i < count; i++) to[i] /= sum;
}

static void sigmoid(const float *logits, float *to, long count) {
    EACH_PART(i, left, count, {
        store_part(to, i, left, 1.0f / (1.0f + exp_vf(-load_part(logits, i, left, FLOAT32))), FLOAT32);
    });
}

static void expert_weights(const float *logits, float *to, long count, int by_sigmoid) {
    if (by_sigmoid)
        sigmoid(logits, to, count);
    else
        softmax(logits, to, count);
    for (long i = 0; i < count; i++) to[i] = to[i] >= 0 ? to[i] : 0; /* no NaN: choices stay valid */
}

INLINE void mix_row(const struct mixing *job, long row, enum dtype type) {
    EACH_PART(i, left, job->k, {
        vf sum = {0};
        for (long a = row * job->top_k; a < (row + 1) * job->top_k; a++)
            if (job->place[a] != ELSEWHERE)
                sum += job->weights[a] * load_part(job->each, job->place[a] * job->k + i, left, FLOAT32);
        store_part(job->out, row * job->k + i, left, sum, type);
    });
}

static void mix_rows(const void *arg, long from, long to) {
    const struct mixing *job = arg;
    for (long row = from; row < to; row++) {
        if (job->type == BFLOAT16)
            mix_row(job, row, BFLOAT16);
        else
            mix_row(job, row, FLOAT32);
    }
}
