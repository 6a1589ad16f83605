/* Rows of x in 8 bits, for products with quantised weights. */
/* One block of a row to 8 bits: x = scale * value with |value| <= 127. An input that is no number makes the scale one. */
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
    float scale = max_lanes(most) / 127.0f, inverse = scale > 0 ? 1.0f / scale : 0;
    int32_t *sums = job->sums + 2 * index;
    int8_t *to = job->values + index * INPUTS;
    sums[0] = sums[1] = 0;
    for (int i = 0; i < INPUTS / LANES; i++) {
        vi whole = (vi)(v[i] * inverse + 12582912.0f) - 0x4b400000; /* 1.5 * 2^23: the low bits are the nearest integer */
        vs1 bytes = __builtin_convertvector(whole, vs1);
        *(vs1_anywhere *)(to + i * LANES) = bytes;
        for (int j = 0; j < LANES; j++) sums[(i * LANES + j) / 16] += to[i * LANES + j];
    }
    scale += sum_lanes(poison);
    job->scales[index] = scale;
    job->weighted[2 * index] = scale * (float)sums[0];
    job->weighted[2 * index + 1] = scale * (float)sums[1];
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
