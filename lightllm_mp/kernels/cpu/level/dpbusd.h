/* Products of bytes by VPDPBUSD: four products of unsigned codes with signed values, added to 32 bits.
 *
 * A level gives `bytes` (its integer register), `set_words` and `dot_bytes`. */
#define SIGNED_CODES 0

INLINE void dot_groups(vi acc[][PARTS], const uint8_t *codes, const int groups, const int8_t *x, long stride, const int rows,
                       enum codes kind) {
    (void)kind;
    bytes sum[DOT_ROWS][PARTS];
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < PARTS; p++) sum[r][p] = set_words(0);
    for (int g = 0; g < groups; g++) {
        bytes w[PARTS];
        for (int p = 0; p < PARTS; p++) w[p] = *(const bytes_anywhere *)(codes + g * GROUP_BYTES + p * sizeof(bytes));
        for (int r = 0; r < rows; r++) {
            int word;
            memcpy(&word, x + r * stride + g * 4, sizeof word);
            bytes v = set_words(word);
            for (int p = 0; p < PARTS; p++) sum[r][p] = dot_bytes(sum[r][p], w[p], v);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < PARTS; p++) acc[r][p] = (vi)sum[r][p];
}
