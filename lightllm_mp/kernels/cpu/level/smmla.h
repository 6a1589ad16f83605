/* Products of bytes by SMMLA: two rows times two outputs, eight inputs each, added to 32 bits.
 *
 * Codes are unpacked for it: of two groups, the eight inputs of an output lie side by side. A lone row takes SDOT. */
#define SIGNED_CODES 1
#define interleave(to, a, b) store_in_turn((int32_t *)(to), (int32x4_t)(a), (int32x4_t)(b))

INLINE void store_in_turn(int32_t *to, int32x4_t a, int32x4_t b) {
    int32x4x2_t both = {{a, b}};
    vst2q_s32(to, both);
}

INLINE void dot_two(vi acc[][PARTS], const uint8_t *codes, const int groups, const int8_t *x, long stride,
                    const int rows) {
    int32x4_t sum[DOT_ROWS / 2][2 * PARTS]; /* [2 rows][2 outputs] each */
    for (int r = 0; r < rows / 2; r++)
        for (int p = 0; p < 2 * PARTS; p++) sum[r][p] = vdupq_n_s32(0);
    for (int g = 0; g < groups; g += 2) {
        int8x16_t v[DOT_ROWS / 2];
        for (int r = 0; r < rows / 2; r++)
            v[r] = vcombine_s8(vld1_s8(x + 2 * r * stride + g * 4), vld1_s8(x + (2 * r + 1) * stride + g * 4));
        for (int p = 0; p < 2 * PARTS; p++) {
            int8x16_t w = vld1q_s8((const int8_t *)codes + g * GROUP_BYTES + p * 16);
            for (int r = 0; r < rows / 2; r++) sum[r][p] = vmmlaq_s32(sum[r][p], v[r], w);
        }
    }
    for (int r = 0; r < rows / 2; r++)
        for (int p = 0; p < PARTS; p++) {
            int64x2_t a = vreinterpretq_s64_s32(sum[r][2 * p]), b = vreinterpretq_s64_s32(sum[r][2 * p + 1]);
            acc[2 * r][p] = (vi)vzip1q_s64(a, b);
            acc[2 * r + 1][p] = (vi)vzip2q_s64(a, b);
        }
}

INLINE void dot_one(vi acc[][PARTS], const uint8_t *codes, const int groups, const int8_t *x) {
    int32x4_t sum[2 * PARTS];
    for (int p = 0; p < 2 * PARTS; p++) sum[p] = vdupq_n_s32(0);
    for (int g = 0; g < groups; g += 2) {
        int8x8_t eight = vld1_s8(x + g * 4);
        int8x16_t v = vcombine_s8(eight, eight);
        for (int p = 0; p < 2 * PARTS; p++)
            sum[p] = vdotq_s32(sum[p], vld1q_s8((const int8_t *)codes + g * GROUP_BYTES + p * 16), v);
    }
    for (int p = 0; p < PARTS; p++) acc[0][p] = (vi)vpaddq_s32(sum[2 * p], sum[2 * p + 1]);
}

INLINE void dot_groups(vi acc[][PARTS], const uint8_t *codes, const int groups, const int8_t *x, long stride,
                       const int rows, enum codes kind) {
    (void)kind;
    if (rows == 1)
        dot_one(acc, codes, groups, x);
    else
        dot_two(acc, codes, groups, x, stride, rows);
}
