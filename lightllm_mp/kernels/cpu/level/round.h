/* Rows of x as integers of 16 bits, for products with quantised weights. */

/* One block of a row: x = scale * value with |value| <= 32767. A block with an input that is no number has a scale that
 * is none. */
INLINE void round_block(const struct rounded *job, long row, long block, enum dtype type) {
    long at = row * job->k + block * INPUTS, left = job->k - block * INPUTS;
    long index = row * job->blocks + block;
    vf v[INPUTS / LANES];
    vi most = {0}; /* the bits of |x|: larger for a larger x, and largest for what is infinite or no number */
    for (int i = 0; i < INPUTS / LANES; i++) {
        long here = left - i * LANES;
        v[i] = here > 0 ? load_part(job->x, at + i * LANES, here, type) : (vf){0};
        most = larger_words((vi)v[i] & 0x7fffffff, most);
    }
    int32_t bits = max_words(most);
    float largest;
    memcpy(&largest, &bits, sizeof largest);
    float scale = largest / 32767.0f, inverse = scale > 0 ? 1.0f / scale : 0;
    vu sums[2] = {{0}, {0}};
    for (int i = 0; i < INPUTS / LANES; i++) {
        vi whole = (vi)(v[i] * inverse + 12582912.0f) - 0x4b400000; /* 1.5 * 2^23: the low bits are the nearest integer */
        store_integers(job->values + index * INPUTS + i * LANES, whole);
        sums[i * LANES / 16] += (vu)whole; /* unsigned: integers made of an input that is no number are any */
    }
    scale += largest * 0.0f;
    job->scales[index] = scale;
    uint32_t whole = 0;
    for (int half = 0; half < 2; half++) {
        uint32_t total = sum_words(sums[half]);
        job->sums[SUMS * index + half] = (int32_t)total;
        whole += total;
    }
    job->sums[SUMS * index + WHOLE] = (int32_t)whole;
    for (int i = 0; i < SUMS; i++) job->weighted[SUMS * index + i] = scale * (float)job->sums[SUMS * index + i];
}

static void round_rows(const void *arg, long from, long to) {
    const struct rounded *job = arg;
    for (long row = from; row < to; row++)
        for (long block = 0; block < job->blocks; block++) {
            if (job->type == BFLOAT16)
                round_block(job, row, block, BFLOAT16);
            else
                round_block(job, row, block, FLOAT32);
        }
}
