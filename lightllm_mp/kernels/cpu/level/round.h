/* Rows of x as integers of 16 bits, for products with quantised weights. */

/* One block of a row: x = scale * value with |value| <= 32767. A block with an input that is no number has a scale that
 * is none. */
INLINE void round_block(const struct rounded *job, long row, long block, enum dtype type) {
    long at = row * job->k + block * INPUTS, left = job->k - block * INPUTS;
    long index = row * job->blocks + block;
    vf v[INPUTS / LANES], most = {0}, poison = {0};
    for (int i = 0; i < INPUTS / LANES; i++) {
        long here = left - i * LANES;
        v[i] = here > 0 ? load_part(job->x, at + i * LANES, here, type) : (vf){0};
        most = larger(larger(v[i], -v[i]), most);
        poison += v[i] * 0.0f;
    }
    float scale = max_lanes(most) / 32767.0f, inverse = scale > 0 ? 1.0f / scale : 0;
    vi sums[2] = {{0}, {0}};
    for (int i = 0; i < INPUTS / LANES; i++) {
        vi whole = (vi)(v[i] * inverse + 12582912.0f) - 0x4b400000; /* 1.5 * 2^23: the low bits are the nearest integer */
        store_integers(job->values + index * INPUTS + i * LANES, whole);
        sums[i * LANES / 16] += whole;
    }
    scale += sum_lanes(poison);
    job->scales[index] = scale;
    for (int half = 0; half < 2; half++) {
        uint32_t total = 0;
        for (int lane = 0; lane < LANES; lane++) total += (uint32_t)sums[half][lane];
        int32_t sum = (int32_t)total;
        job->sums[2 * index + half] = sum;
        job->weighted[2 * index + half] = scale * (float)sum;
    }
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
