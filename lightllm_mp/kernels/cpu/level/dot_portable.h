/* Products of bytes without any instruction for them. */
#define SIGNED_CODES 1

INLINE void dot_groups(vi acc[][PARTS], const uint8_t *codes, const int groups, const int8_t *x, long stride, const int rows,
                       enum codes kind) {
    for (int r = 0; r < rows; r++) {
        int32_t sum[OUTPUTS] = {0};
        for (int g = 0; g < groups; g++) {
            const int8_t *v = x + r * stride + g * 4;
            for (int o = 0; o < OUTPUTS; o++) {
                const uint8_t *w = codes + g * GROUP_BYTES + o * 4;
                for (int i = 0; i < 4; i++) sum[o] += (kind == CODES_8 ? (int8_t)w[i] : w[i]) * v[i];
            }
        }
        memcpy(acc[r], sum, sizeof sum);
    }
}
