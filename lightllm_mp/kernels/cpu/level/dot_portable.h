/* Products of bytes by 16-bit products of vectors.
 *
 * A word of four bytes is split into its even and its odd bytes, each two lanes of 16 bits. A group adds two products
 * to a lane: codes of 4 bits allow all eight groups to be added before the sums are widened (8 * 2 * 15 * 127 < 2^15),
 * those of 5 bits four, those of 6 bits two, signed ones of 8 bits one. */
#define SIGNED_CODES 1

typedef int16_t shorts __attribute__((vector_size(LANES * 4)));
typedef uint16_t unsigned_shorts __attribute__((vector_size(LANES * 4)));

struct split {
    shorts even, odd;
};

INLINE struct split split_bytes(vi words, const int with_sign) {
    shorts v = (shorts)words;
    if (with_sign) return (struct split){(shorts)((unsigned_shorts)v << 8) >> 8, v >> 8};
    return (struct split){v & 0xff, (shorts)((unsigned_shorts)v >> 8)};
}

INLINE struct split same_four(const int8_t *p) {
    int32_t word;
    memcpy(&word, p, sizeof word);
    return split_bytes(word - (vi){0}, 1);
}

/* At most two rows: their sums fit the registers. */
INLINE void dot_two(vi acc[][PARTS], const uint8_t *codes, const int groups, const int8_t *x, long stride,
                    const int rows, const int run, const int with_sign) {
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < PARTS; p++) acc[r][p] = (vi){0};
    for (int first = 0; first < groups; first += run) {
        shorts sum[2][PARTS];
        for (int g = first; g < first + run; g++) {
            struct split v[2];
            for (int r = 0; r < rows; r++) v[r] = same_four(x + r * stride + g * 4);
            for (int p = 0; p < PARTS; p++) {
                vi words = (vi)load_float(codes + g * GROUP_BYTES + p * LANES * 4);
                struct split w = split_bytes(words, with_sign);
                for (int r = 0; r < rows; r++) {
                    shorts two = w.even * v[r].even + w.odd * v[r].odd;
                    sum[r][p] = g > first ? sum[r][p] + two : two;
                }
            }
        }
        for (int r = 0; r < rows; r++)
            for (int p = 0; p < PARTS; p++) {
                vi both = (vi)sum[r][p];
                acc[r][p] += ((vi)((vu)both << 16) >> 16) + (both >> 16);
            }
    }
}

INLINE void dot_groups(vi acc[][PARTS], const uint8_t *codes, const int groups, const int8_t *x, long stride,
                       const int rows, enum codes kind) {
    const int most = kind == CODES_8 ? 1 : kind == CODES_6 ? 2 : kind == CODES_5 ? 4 : 8;
    const int run = most < groups ? most : groups;
    for (int r = 0; r < rows; r += 2)
        dot_two(acc + r, codes, groups, x + r * stride, stride, rows - r < 2 ? rows - r : 2, run, kind == CODES_8);
}
