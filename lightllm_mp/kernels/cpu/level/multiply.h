/* Unpacked blocks times rows of x as integers of 16 bits. Products are summed as integers within a scale's inputs, and
 * those sums in float32.
 *
 * A level gives
 *   DOT_ROWS   the most rows at once: 4 or 8
 *   DOT        a file with dot_groups (integer products of rows with codes) and store_integers (the order of x for it) */
#include DOT

/* Adds the products of `rows` rows with `count` unpacked blocks, the first of which is block `first` of the row. */
INLINE void multiply_blocks(const struct rounded *x, struct unpacked *u, long row, long to, long first, long count,
                            const int rows, const struct format *f) {
    const long blocks = x->blocks, stride = blocks * INPUTS, begin = row * blocks + first;
    const int16_t *values = x->values + begin * INPUTS;
    const float *row_scales = x->scales + begin, *weighted = x->weighted + begin * SUMS;
    const int32_t *row_sums = x->sums + begin * SUMS;
    float *totals = u->sums + to * WIDTH;
    const int subs = f->subs, groups = GROUPS / subs;
    for (long b = 0; b < count; b++) {
        for (int s = 0; s < subs; s++) {
            vi acc[DOT_ROWS][PARTS];
            dot_groups(acc, u->codes + (b * GROUPS + s * groups) * WIDTH * 4, groups, values + b * INPUTS + s * groups * 4,
                       stride, rows);
            const float *scales = u->scales + (b * subs + s) * WIDTH, *minima = u->minima + (b * subs + s) * WIDTH;
            EACH_ROW
            for (int r = 0; r < rows; r++) {
                long at = r * blocks + b, sum = SUMS * at + (subs == 2 ? s : WHOLE);
                vf scale = splat(row_scales[at]), least = splat(weighted[sum]);
                /* Unsigned: sums of a block with an input that is no number are any; its scale is none. */
                vu zeros = (vu){} + (uint32_t)row_sums[sum] * (uint32_t)f->zero;
                for (int p = 0; p < PARTS; p++) {
                    float *total = totals + r * WIDTH + p * LANES;
                    vf dots = __builtin_convertvector((vi)((vu)acc[r][p] - zeros), vf);
                    vf v = multiply_add(dots, load_float(scales + p * LANES) * scale, load_float(total));
                    if (f->minimum != NO_MINIMUM) v = multiply_add(load_float(minima + p * LANES), least, v);
                    store_float(total, v);
                }
            }
        }
    }
}

/* Adds the products of `rows` rows, beginning with `row`, with `count` unpacked blocks from `first` on to u->sums. */
INLINE void multiply_all(const struct rounded *x, struct unpacked *u, long row, long rows, long first, long count,
                         const struct format *f) {
    long r = 0;
#define SOME(n) \
    for (; r + n <= rows; r += n) multiply_blocks(x, u, row + r, r, first, count, n, f)
#if DOT_ROWS == 8
    SOME(8);
#endif
    SOME(4);
    SOME(2);
    SOME(1);
#undef SOME
}
