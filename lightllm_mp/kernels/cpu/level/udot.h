/* Products of unsigned codes with integers of 16 bits by UDOT, which adds four products of unsigned bytes to 32 bits.
 *
 * An integer plus 2^15 is unsigned; its high bytes and its low ones are multiplied apart. With `h` and `l` for those sums,
 * a product is 256 * h + l - 2^15 * (the sum of the codes). The integers of a group lie as [4 low bytes][4 high bytes]. */
INLINE void store_integers(int16_t *to, vi whole) {
    uint8x8_t words = vreinterpret_u8_u16(vmovn_u32((uint32x4_t)(whole + 32768)));
    vst1_lane_u32((uint32_t *)to, vreinterpret_u32_u8(vuzp1_u8(words, words)), 0);
    vst1_lane_u32((uint32_t *)to + 1, vreinterpret_u32_u8(vuzp2_u8(words, words)), 0);
}

/* Parts [from, from + parts) of the outputs. */
INLINE void dot_parts(vi acc[][PARTS], const uint8_t *codes, const int groups, const int16_t *x, long stride,
                      const int rows, const int from, const int parts) {
    uint32x4_t low[DOT_ROWS][PARTS], high[DOT_ROWS][PARTS], all[PARTS];
    for (int p = 0; p < parts; p++) {
        all[p] = vdupq_n_u32(0);
        for (int r = 0; r < rows; r++) low[r][p] = high[r][p] = vdupq_n_u32(0);
    }
    KEEP_LOOP
    for (int g = 0; g < groups; g += 2) {
        uint8x16_t v[DOT_ROWS];
        for (int r = 0; r < rows; r++) v[r] = vld1q_u8((const uint8_t *)(x + r * stride + g * 4));
        for (int p = 0; p < parts; p++) {
            uint8x16_t one = vld1q_u8(codes + g * WIDTH * 4 + (from + p) * 16);
            uint8x16_t two = vld1q_u8(codes + (g + 1) * WIDTH * 4 + (from + p) * 16);
            all[p] = vdotq_u32(vdotq_u32(all[p], one, vdupq_n_u8(1)), two, vdupq_n_u8(1));
            for (int r = 0; r < rows; r++) {
                low[r][p] = vdotq_laneq_u32(vdotq_laneq_u32(low[r][p], one, v[r], 0), two, v[r], 2);
                high[r][p] = vdotq_laneq_u32(vdotq_laneq_u32(high[r][p], one, v[r], 1), two, v[r], 3);
            }
        }
    }
    for (int p = 0; p < parts; p++)
        for (int r = 0; r < rows; r++)
            acc[r][from + p] = (vi)vsubq_u32(vaddq_u32(vshlq_n_u32(high[r][p], 8), low[r][p]), vshlq_n_u32(all[p], 15));
}

INLINE void dot_groups(vi acc[][PARTS], const uint8_t *codes, const int groups, const int16_t *x, long stride,
                       const int rows) {
    const int parts = rows > 2 ? 2 : PARTS; /* that fit the registers */
    for (int p = 0; p < PARTS; p += parts) dot_parts(acc, codes, groups, x, stride, rows, p, parts);
}
