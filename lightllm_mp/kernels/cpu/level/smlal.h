/* Products of unsigned codes with integers of 16 bits by SMLAL, summed in 32 bits.
 *
 * A code fills a byte; those of inputs 0 and 2 of a group become one register of pairs, those of 1 and 3 another. The
 * integers of x lie in that order. */
INLINE void store_integers(int16_t *to, vi whole) {
    vst1_s16(to, vmovn_s32((int32x4_t)SHUFFLE(whole, MIDDLE_SWAPPED)));
}

INLINE int16x8_t same_pair(const int16_t *p) {
    int32_t word;
    memcpy(&word, p, sizeof word);
    return vreinterpretq_s16_s32(vdupq_n_s32(word));
}

/* Parts [from, from + parts) of the outputs. A sum is of half a group: those of an output lie side by side. */
INLINE void dot_parts(vi acc[][PARTS], const uint8_t *codes, const int groups, const int16_t *x, long stride,
                      const int rows, const int from, const int parts) {
    int32x4_t sum[DOT_ROWS][PARTS][2];
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < parts; p++) sum[r][p][0] = sum[r][p][1] = vdupq_n_s32(0);
    KEEP_LOOP
    for (int g = 0; g < groups; g++)
        for (int odd = 0; odd < 2; odd++) {
            int16x8_t w[PARTS];
            for (int p = 0; p < parts; p++) {
                uint16x8_t both = vreinterpretq_u16_u8(vld1q_u8(codes + g * WIDTH * 4 + (from + p) * 16));
                w[p] = vreinterpretq_s16_u16(odd ? vshrq_n_u16(both, 8) : vandq_u16(both, vdupq_n_u16(0xff)));
            }
            for (int r = 0; r < rows; r++) {
                int16x8_t v = same_pair(x + r * stride + g * 4 + 2 * odd);
                for (int p = 0; p < parts; p++) {
                    sum[r][p][0] = vmlal_s16(sum[r][p][0], vget_low_s16(w[p]), vget_low_s16(v));
                    sum[r][p][1] = vmlal_high_s16(sum[r][p][1], w[p], v);
                }
            }
        }
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < parts; p++) acc[r][from + p] = (vi)vpaddq_s32(sum[r][p][0], sum[r][p][1]);
}

INLINE void dot_groups(vi acc[][PARTS], const uint8_t *codes, const int groups, const int16_t *x, long stride,
                       const int rows) {
    const int parts = rows > 2 ? 2 : PARTS; /* that fit the registers */
    for (int p = 0; p < PARTS; p += parts) dot_parts(acc, codes, groups, x, stride, rows, p, parts);
}
