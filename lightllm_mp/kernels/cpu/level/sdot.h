/* Products of bytes by SDOT: four products of signed bytes, added to 32 bits; codes of up to 6 bits are signed, too. */
#define SIGNED_CODES 1

INLINE void dot_groups(vi acc[][PARTS], const uint8_t *codes, const int groups, const int8_t *x, long stride,
                       const int rows, enum codes kind) {
    (void)kind;
    int32x4_t sum[DOT_ROWS][PARTS];
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < PARTS; p++) sum[r][p] = vdupq_n_s32(0);
    for (int first = 0; first < groups; first += 4) {
        int8x16_t v[DOT_ROWS]; /* of four groups */
        for (int r = 0; r < rows; r++) v[r] = vld1q_s8(x + r * stride + first * 4);
#define DOT_GROUP(i)                                                                                              \
    for (int p = 0; p < PARTS; p++) {                                                                             \
        int8x16_t w = vld1q_s8((const int8_t *)codes + (first + i) * GROUP_BYTES + p * 16);                       \
        for (int r = 0; r < rows; r++) sum[r][p] = vdotq_laneq_s32(sum[r][p], w, v[r], i);                        \
    }
        DOT_GROUP(0)
        DOT_GROUP(1)
        DOT_GROUP(2)
        DOT_GROUP(3)
#undef DOT_GROUP
    }
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < PARTS; p++) acc[r][p] = (vi)sum[r][p];
}
