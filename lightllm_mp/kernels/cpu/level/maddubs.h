/* Products of bytes by VPMADDUBSW: pairs of products of unsigned codes with signed values, summed in 16 bits.
 *
 * Codes of 4 bits allow eight such sums to be added before they are widened (8 * 2 * 15 * 127 < 2^15), those of 5 bits
 * four, those of 6 bits two. Codes of 8 bits are signed here: their magnitudes are multiplied by x with their signs.
 *
 * A level gives `bytes` (its integer register) and the operations on it. */
#define SIGNED_CODES 1

INLINE bytes load_bytes(const uint8_t *p) { return *(const bytes_anywhere *)p; }

INLINE bytes same_four(const int8_t *p) {
    int word;
    memcpy(&word, p, sizeof word);
    return set_words(word);
}

/* Every part takes part in each value of x: for codes that need no sums between. */
INLINE void dot_short(vi acc[][PARTS], const uint8_t *codes, const int groups, const int8_t *x, long stride, const int rows) {
    bytes sum[DOT_ROWS][PARTS];
    for (int g = 0; g < groups; g++) {
        bytes w[PARTS];
        for (int p = 0; p < PARTS; p++) w[p] = load_bytes(codes + g * GROUP_BYTES + p * sizeof(bytes));
        for (int r = 0; r < rows; r++) {
            bytes v = same_four(x + r * stride + g * 4);
            for (int p = 0; p < PARTS; p++) {
                bytes two = multiply_add_bytes(w[p], v);
                sum[r][p] = g ? add_shorts(sum[r][p], two) : two;
            }
        }
    }
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < PARTS; p++) acc[r][p] = (vi)widen_shorts(sum[r][p]);
}

INLINE void dot_long(vi acc[][PARTS], const uint8_t *codes, const int groups, const int8_t *x, long stride, const int rows,
                     const int run) {
    for (int p = 0; p < PARTS; p++) {
        bytes total[DOT_ROWS];
        for (int first = 0; first < groups; first += run) {
            bytes sum[DOT_ROWS];
            for (int g = first; g < first + run; g++) {
                bytes w = load_bytes(codes + g * GROUP_BYTES + p * sizeof(bytes));
                for (int r = 0; r < rows; r++) {
                    bytes two = multiply_add_bytes(w, same_four(x + r * stride + g * 4));
                    sum[r] = g > first ? add_shorts(sum[r], two) : two;
                }
            }
            for (int r = 0; r < rows; r++) {
                bytes wide = widen_shorts(sum[r]);
                total[r] = first ? add_words(total[r], wide) : wide;
            }
        }
        for (int r = 0; r < rows; r++) acc[r][p] = (vi)total[r];
    }
}

INLINE void dot_signed(vi acc[][PARTS], const uint8_t *codes, const int groups, const int8_t *x, long stride, const int rows) {
    for (int p = 0; p < PARTS; p++) {
        bytes total[DOT_ROWS];
        for (int g = 0; g < groups; g++) {
            bytes w = load_bytes(codes + g * GROUP_BYTES + p * sizeof(bytes)), size = magnitudes(w);
            for (int r = 0; r < rows; r++) {
                bytes wide = widen_shorts(multiply_add_bytes(size, with_signs(same_four(x + r * stride + g * 4), w)));
                total[r] = g ? add_words(total[r], wide) : wide;
            }
        }
        for (int r = 0; r < rows; r++) acc[r][p] = (vi)total[r];
    }
}

INLINE void dot_groups(vi acc[][PARTS], const uint8_t *codes, const int groups, const int8_t *x, long stride, const int rows,
                       enum codes kind) {
    switch (kind) {
        case CODES_8: dot_signed(acc, codes, groups, x, stride, rows); break;
        case CODES_6: dot_long(acc, codes, groups, x, stride, rows, 2); break;
        case CODES_5: dot_long(acc, codes, groups, x, stride, rows, 4); break;
        default: dot_short(acc, codes, groups, x, stride, rows); break;
    }
}
