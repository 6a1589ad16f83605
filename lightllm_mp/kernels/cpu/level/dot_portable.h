/* Products of unsigned codes with integers of 16 bits, without any instruction for them. */
INLINE void store_integers(int16_t *to, vi whole) {
    for (int i = 0; i < LANES; i++) to[i] = (int16_t)whole[i];
}

INLINE void dot_groups(vi acc[][PARTS], const uint8_t *codes, const int groups, const int16_t *x, long stride, const int rows) {
    for (int r = 0; r < rows; r++) {
        int32_t sum[WIDTH] = {0};
        for (int g = 0; g < groups; g++) {
            const int16_t *v = x + r * stride + g * 4;
            for (int o = 0; o < WIDTH; o++) {
                const uint8_t *w = codes + g * WIDTH * 4 + o * 4;
                for (int i = 0; i < 4; i++) sum[o] += w[i] * v[i];
            }
        }
        memcpy(acc[r], sum, sizeof sum);
    }
}
