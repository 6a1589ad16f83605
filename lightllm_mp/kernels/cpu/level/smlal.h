/* Products of bytes by SMLAL: products of signed bytes, summed in 16 bits; codes of up to 6 bits are signed bytes, too.
 *
 * Codes of 5 bits and fewer allow all eight groups to be added before the sums are widened (8 * 31 * 127 < 2^15), those
 * of 6 bits four, signed ones of 8 bits two (2 * 128 * 127 < 2^15). */
#define SIGNED_CODES 1

INLINE int8x16_t same_four(const int8_t *p) {
    int32_t word;
    memcpy(&word, p, sizeof word);
    return vreinterpretq_s8_s32(vdupq_n_s32(word));
}

/* Parts [from, from + parts) of the outputs. A sum is of one input: those of an output lie side by side. */
INLINE void dot_parts(vi acc[][PARTS], const uint8_t *codes, const int groups, const int8_t *x, long stride,
                      const int rows, const int run, const int from, const int parts) {
    int32x4_t total[DOT_ROWS][PARTS][2];
    for (int first = 0; first < groups; first += run) {
        int16x8_t sum[DOT_ROWS][PARTS][2];
        for (int g = first; g < first + run; g++) {
            int8x16_t w[PARTS];
            for (int p = 0; p < parts; p++) w[p] = vld1q_s8((const int8_t *)codes + g * GROUP_BYTES + (from + p) * 16);
            for (int r = 0; r < rows; r++) {
                int8x16_t v = same_four(x + r * stride + g * 4);
                for (int p = 0; p < parts; p++) {
                    int8x8_t low = vget_low_s8(w[p]), x_low = vget_low_s8(v);
                    sum[r][p][0] = g > first ? vmlal_s8(sum[r][p][0], low, x_low) : vmull_s8(low, x_low);
                    sum[r][p][1] = g > first ? vmlal_high_s8(sum[r][p][1], w[p], v) : vmull_high_s8(w[p], v);
                }
            }
        }
        for (int r = 0; r < rows; r++)
            for (int p = 0; p < parts; p++)
                for (int h = 0; h < 2; h++)
                    total[r][p][h] = first ? vpadalq_s16(total[r][p][h], sum[r][p][h]) : vpaddlq_s16(sum[r][p][h]);
    }
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < parts; p++) acc[r][from + p] = (vi)vpaddq_s32(total[r][p][0], total[r][p][1]);
}

INLINE void dot_groups(vi acc[][PARTS], const uint8_t *codes, const int groups, const int8_t *x, long stride,
                       const int rows, enum codes kind) {
    const int run = kind == CODES_8 ? 2 : kind == CODES_6 ? 4 : groups;
    const int parts = rows == 1 ? PARTS : run < groups ? 1 : 2; /* that fit the registers */
    for (int p = 0; p < PARTS; p += parts) {
        dot_parts(acc, codes, groups, x, stride, rows, run, p, parts);
        __asm__("" : "+r"(x)); /* x is loaded again: kept for the next parts, it would go to the stack */
    }
}
