/* Operations on one row at a time: normalisation, rotary embedding with the KV write. */
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
    float spread = job->mean_squares ? job->mean_squares[row]
                   : job->centred    ? variance(job, at, mean, type)
                                     : sum_lanes(squares) / n;
    float scale = 1.0f / sqrtf(spread + job->eps);
    EACH_PART(i, left, n, {
        vf v = (load_part(job->residual, at + i, left, type) - mean) * scale;
        v *= load_part(job->weight, line + i, left, weights);
        if (job->bias) v += load_part(job->bias, line + i, left, weights);
        store_part(job->out, at + i, left, v, type);
    });
}

static void norm_rows(const void *arg, long from, long to) {
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

INLINE float square_sum(const struct squares *job, long row, enum dtype type) {
    vf squares = {0};
    EACH_PART(i, left, job->n, {
        vf v = load_part(job->x, row * job->width + job->first + i, left, type);
        squares += v * v;
    });
    return sum_lanes(squares);
}

static void squares_rows(const void *arg, long from, long to) {
    const struct squares *job = arg;
    for (long row = from; row < to; row++)
        job->out[row] = job->type == BFLOAT16 ? square_sum(job, row, BFLOAT16) : square_sum(job, row, FLOAT32);
}

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

/* A head's components of `type` to 8 bits, and its scale: the largest magnitude becomes the largest value there is. */
INLINE void round_head(const void *from, void *to, long at, uint16_t *scale_to, long head_dim, enum dtype type,
                       enum dtype kv_type) {
    vf most = {0};
    for (long i = 0; i < head_dim; i += LANES) {
        vf v = load_part(from, i, head_dim - i, type);
        most = larger(larger(v, -v), most);
    }
    float largest = kv_type == INT8 ? 127.0f : 448.0f;
    uint16_t half = float_half(max_lanes(most) / largest);
    float scale = half_float(half);
    if (scale < 6.103515625e-05f) scale = 6.103515625e-05f; /* the smallest normal float16 */
    *scale_to = half;
    for (long i = 0; i < head_dim; i++) {
        float v = load_one(from, i, type) / scale;
        v = v > largest ? largest : v < -largest ? -largest : v;
        ((uint8_t *)to)[at + i] = kv_type == INT8 ? (uint8_t)(int8_t)(int)rintf(v) : float_e4m3(v);
    }
}

INLINE void store_head(const struct rotary *job, const void *from, long in, long row, long head, int is_value,
                       enum dtype type) {
    const struct heads *h = &job->h;
    long size = type == BFLOAT16 ? 2 : 4, line = job->slots[row] * h->kv_heads + head, at = line * h->head_dim;
    void *to = is_value ? job->values : job->keys;
    const char *source = (const char *)from + in * size;
    if (job->kv_type == type)
        memcpy((char *)to + at * size, source, h->head_dim * size);
    else
        round_head(source, to, at, (is_value ? job->value_scales : job->key_scales) + line, h->head_dim, type,
                   job->kv_type);
}

INLINE void rotary_row(const struct rotary *job, long row, enum dtype type) {
    const struct heads *h = &job->h;
    long d = h->head_dim, in = row * (h->heads + 2 * h->kv_heads) * d, out = row * h->heads * d;
    const float *cos = job->cos + job->positions[row] * job->half, *sin = job->sin + job->positions[row] * job->half;
    float key[MAX_HEAD_DIM];
    for (long i = 0; i < h->heads; i++)
        rotate_head(job->qkv, in + i * d, job->q, out + i * d, cos, sin, job->half, d, type);
    in += h->heads * d;
    for (long i = 0; i < h->kv_heads; i++) {
        rotate_head(job->qkv, in + i * d, key, 0, cos, sin, job->half, d, type);
        store_head(job, key, 0, row, i, 0, type);
        store_head(job, job->qkv, in + (h->kv_heads + i) * d, row, i, 1, type);
    }
}

static void rotary_rows(const void *arg, long from, long to) {
    const struct rotary *job = arg;
    for (long row = from; row < to; row++) {
        if (job->type == BFLOAT16)
            rotary_row(job, row, BFLOAT16);
        else
            rotary_row(job, row, FLOAT32);
    }
}
