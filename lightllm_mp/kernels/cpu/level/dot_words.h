/* Products of unsigned codes with integers of 16 bits, two at a time: VPMADDWD, or VPDPWSSD which adds as well.
 *
 * A code fills a byte; those of inputs 0 and 2 of a group become one register of pairs, those of 1 and 3 another. The
 * integers of x lie in that order.
 *
 * A level gives `bytes` (its integer register), `set_words`, `low_bytes`, `high_bytes_down` and `add_pairs`. */

/* Integers of LANES inputs, in the order of `dot_groups`. */
INLINE void store_integers(int16_t *to, vi whole) {
    typedef int16_t shorts __attribute__((vector_size(LANES * 2), aligned(2), may_alias));
    *(shorts *)to = __builtin_convertvector(SHUFFLE(whole, MIDDLE_SWAPPED), shorts);
}

INLINE bytes same_pair(const int16_t *p) {
    int word;
    memcpy(&word, p, sizeof word);
    return set_words(word);
}

/* acc = products of `rows` rows of x, `stride` apart, with the codes of some groups. */
INLINE void dot_groups(vi acc[][PARTS], const uint8_t *codes, const int groups, const int16_t *x, long stride, const int rows) {
    bytes sum[DOT_ROWS][PARTS];
    EACH_ROW
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < PARTS; p++) sum[r][p] = set_words(0);
    KEEP_LOOP
    for (int g = 0; g < groups; g++) {
        for (int odd = 0; odd < 2; odd++) { /* one after the other: they need not be in registers at once */
            bytes w[PARTS];
            for (int p = 0; p < PARTS; p++) {
                bytes both = *(const bytes_anywhere *)(codes + g * WIDTH * 4 + p * sizeof(bytes));
                w[p] = odd ? high_bytes_down(both) : low_bytes(both);
            }
            EACH_ROW
            for (int r = 0; r < rows; r++) {
                bytes v = same_pair(x + r * stride + g * 4 + 2 * odd);
                for (int p = 0; p < PARTS; p++) sum[r][p] = add_pairs(sum[r][p], w[p], v);
            }
        }
    }
    EACH_ROW
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < PARTS; p++) acc[r][p] = (vi)sum[r][p];
}
