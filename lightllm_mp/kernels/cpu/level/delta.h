/* The gated delta rule with its convolution and gated norm, token by token: a task is one key head of a sequence, with the
 * value heads that share it. A token's result does not depend on how the sequence is cut, because sums run over the rows
 * and columns of a state in the same order for every token. */
#define DELTA_TOKENS 32 /* whose queries, keys and values are held at a time */

struct delta_scratch {
    float q[DELTA_TOKENS * MAX_DELTA_DIM], k[DELTA_TOKENS * MAX_DELTA_DIM]; /* [tokens][key_dim] */
    float v[DELTA_TOKENS * MAX_DELTA_DIM], out[DELTA_TOKENS * MAX_DELTA_DIM]; /* [tokens][value_dim] */
    float beta[DELTA_TOKENS], decay[DELTA_TOKENS];
} __attribute__((aligned(64)));

INLINE long delta_channels(const struct delta *d) { return 2 * d->key_heads * d->key_dim + d->value_heads * d->value_dim; }

/* The convolution's input of token `t` of a sequence's new ones; those before them are in its state. */
INLINE const void *delta_input(const struct delta *d, long seq, long t, long channel, enum dtype type) {
    long size = type == BFLOAT16 ? 2 : 4, channels = delta_channels(d), kept = d->taps - 1;
    if (t >= 0) {
        long width = channels + d->value_heads * d->value_dim;
        return (const char *)d->projected + ((d->seq_start[seq] + t) * width + channel) * size;
    }
    return (const char *)d->inputs + ((d->rows[seq] * kept + kept + t) * channels + channel) * size;
}

/* silu of the convolution for `width` channels of token `t`. */
INLINE void delta_convolve(const struct delta *d, long seq, long t, long channel, long width, float *to, enum dtype type) {
    long channels = delta_channels(d);
    const void *inputs[MAX_TAPS];
    for (long tap = 0; tap < d->taps; tap++) inputs[tap] = delta_input(d, seq, t + 1 - d->taps + tap, channel, type);
    for (long i = 0; i < width; i += LANES) {
        vf sum = {0};
        for (long tap = 0; tap < d->taps; tap++)
            sum = multiply_add(load(d->conv, tap * channels + channel + i, type), load(inputs[tap], i, type), sum);
        store_float(to + i, sum / (1.0f + exp_vf(-sum)));
    }
}

/* Divides by the length, and multiplies by `scale`. */
INLINE void delta_normalise(float *x, long width, float scale) {
    vf squares = {0};
    for (long i = 0; i < width; i += LANES) squares += load_float(x + i) * load_float(x + i);
    scale /= sqrtf(sum_lanes(squares) + 1e-6f);
    for (long i = 0; i < width; i += LANES) store_float(x + i, load_float(x + i) * scale);
}

/* Not expf: its version in newer C libraries would bind the extension to them. */
INLINE float exp_one(float x) { return exp_vf(splat(x))[0]; }

INLINE void delta_factors(const struct delta *d, struct delta_scratch *s, long seq, long t, long tokens, long head) {
    for (long i = 0; i < tokens; i++) {
        const float *ba = d->ba + (d->seq_start[seq] + t + i) * 2 * d->value_heads;
        float a = ba[d->value_heads + head] + d->dt_bias[head];
        float softplus = a > 20.0f ? a : log1pf(exp_one(a));
        s->beta[i] = 1.0f / (1.0f + exp_one(-ba[head]));
        s->decay[i] = exp_one(-d->decay[head] * softplus);
    }
}

#define CHAINS 4 /* sums that run side by side: an addition takes as many cycles */

/* Moves `wide` vectors of columns of a state on by the tokens. */
INLINE void delta_columns(const struct delta *d, struct delta_scratch *s, float *state, long tokens, long column,
                          const int wide) {
    long rows = d->key_dim, stride = d->value_dim;
    for (long t = 0; t < tokens; t++) {
        const float *q = s->q + t * rows, *k = s->k + t * rows;
        vf sum[CHAINS][2] = {{{0}}}, error[2];
        float decay = s->decay[t];
        for (long i = 0; i < rows; i += CHAINS)
            for (int j = 0; j < CHAINS; j++)
                for (int w = 0; w < wide; w++) {
                    vf old = load_float(state + (i + j) * stride + column + w * LANES);
                    sum[j][w] = multiply_add(splat(k[i + j]), old, sum[j][w]);
                }
        for (int w = 0; w < wide; w++) {
            vf seen = (sum[0][w] + sum[1][w]) + (sum[2][w] + sum[3][w]);
            error[w] = s->beta[t] * (load_float(s->v + t * stride + column + w * LANES) - decay * seen);
            for (int j = 0; j < CHAINS; j++) sum[j][w] = (vf){0};
        }
        for (long i = 0; i < rows; i += CHAINS)
            for (int j = 0; j < CHAINS; j++)
                for (int w = 0; w < wide; w++) {
                    float *at = state + (i + j) * stride + column + w * LANES;
                    vf moved = multiply_add(splat(k[i + j]), error[w], decay * load_float(at));
                    store_float(at, moved);
                    sum[j][w] = multiply_add(splat(q[i + j]), moved, sum[j][w]);
                }
        for (int w = 0; w < wide; w++)
            store_float(s->out + t * stride + column + w * LANES, (sum[0][w] + sum[1][w]) + (sum[2][w] + sum[3][w]));
    }
}

/* out / rms(out) * norm * silu(gate) of a head. */
INLINE void delta_finish(const struct delta *d, const float *x, long token, long head, enum dtype type) {
    long width = d->value_dim, values = d->value_heads * width, channels = delta_channels(d);
    vf squares = {0};
    for (long i = 0; i < width; i += LANES) squares += load_float(x + i) * load_float(x + i);
    float scale = 1.0f / sqrtf(sum_lanes(squares) / width + d->eps);
    for (long i = 0; i < width; i += LANES) {
        vf gate = load(d->projected, token * (channels + values) + channels + head * width + i, type);
        vf v = load_float(x + i) * scale * load_float(d->norm + i) * (gate / (1.0f + exp_vf(-gate)));
        store(d->out, token * values + head * width + i, v, type);
    }
}

/* Copies the last inputs of the convolution up to token `end` to a place, for `width` channels. The oldest go first: the
 * place may be the sequence's own. */
INLINE void delta_keep_inputs(const struct delta *d, long seq, long end, long place, long channel, long width,
                              enum dtype type) {
    long size = type == BFLOAT16 ? 2 : 4, channels = delta_channels(d), kept = d->taps - 1;
    for (long i = 0; i < kept; i++)
        memmove((char *)d->inputs + ((place * kept + i) * channels + channel) * size,
                delta_input(d, seq, end - kept + i, channel, type), width * size);
}

INLINE void delta_keep(const struct delta *d, long seq, long end, long place, long key_head, enum dtype type) {
    long times = d->value_heads / d->key_heads, keys = d->key_heads * d->key_dim, values = times * d->value_dim;
    delta_keep_inputs(d, seq, end, place, key_head * d->key_dim, d->key_dim, type);
    delta_keep_inputs(d, seq, end, place, keys + key_head * d->key_dim, d->key_dim, type);
    delta_keep_inputs(d, seq, end, place, 2 * keys + key_head * values, values, type);
    long matrix = d->key_dim * d->value_dim, first = key_head * times;
    if (place != d->rows[seq])
        memcpy(d->recurrent + (place * d->value_heads + first) * matrix,
               d->recurrent + (d->rows[seq] * d->value_heads + first) * matrix, times * matrix * sizeof(float));
}

/* Tokens [t, t + tokens) of a sequence's new ones, at most DELTA_TOKENS. */
INLINE void delta_tokens(const struct delta *d, struct delta_scratch *s, long seq, long t, long tokens, long key_head,
                         enum dtype type) {
    long keys = d->key_heads * d->key_dim, times = d->value_heads / d->key_heads;
    for (long i = 0; i < tokens; i++) {
        float *q = s->q + i * d->key_dim, *k = s->k + i * d->key_dim;
        delta_convolve(d, seq, t + i, key_head * d->key_dim, d->key_dim, q, type);
        delta_convolve(d, seq, t + i, keys + key_head * d->key_dim, d->key_dim, k, type);
        delta_normalise(q, d->key_dim, 1.0f / sqrtf(d->key_dim));
        delta_normalise(k, d->key_dim, 1.0f);
    }
    for (long head = key_head * times; head < (key_head + 1) * times; head++) {
        float *state = d->recurrent + (d->rows[seq] * d->value_heads + head) * d->key_dim * d->value_dim;
        long column = 0;
        delta_factors(d, s, seq, t, tokens, head);
        for (long i = 0; i < tokens; i++)
            delta_convolve(d, seq, t + i, 2 * keys + head * d->value_dim, d->value_dim, s->v + i * d->value_dim, type);
        for (; column + 2 * LANES <= d->value_dim; column += 2 * LANES) delta_columns(d, s, state, tokens, column, 2);
        for (; column < d->value_dim; column += LANES) delta_columns(d, s, state, tokens, column, 1);
        for (long i = 0; i < tokens; i++)
            delta_finish(d, s->out + i * d->value_dim, d->seq_start[seq] + t + i, head, type);
    }
}

INLINE void delta_sequence(const struct delta *d, long seq, long key_head, enum dtype type) {
    struct delta_scratch scratch;
    long count = d->seq_start[seq + 1] - d->seq_start[seq], save = 0, t = 0;
    while (t < count) {
        while (save < d->save_count && (d->saves[3 * save] < seq || (d->saves[3 * save] == seq && d->saves[3 * save + 1] <= t)))
            save++;
        int saves = save < d->save_count && d->saves[3 * save] == seq;
        long end = t + DELTA_TOKENS < count ? t + DELTA_TOKENS : count;
        if (saves && d->saves[3 * save + 1] < end) end = d->saves[3 * save + 1];
        delta_tokens(d, &scratch, seq, t, end - t, key_head, type);
        if (saves && d->saves[3 * save + 1] == end) delta_keep(d, seq, end, d->saves[3 * save + 2], key_head, type);
        t = end;
    }
    delta_keep(d, seq, count, d->rows[seq], key_head, type);
}

static void delta_heads(const struct delta *d, long seq, long key_head) {
    if (d->type == BFLOAT16)
        delta_sequence(d, seq, key_head, BFLOAT16);
    else
        delta_sequence(d, seq, key_head, FLOAT32);
}
