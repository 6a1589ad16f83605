/* Products of unsigned codes with integers of 16 bits, two at a time: VPMADDWD, or VPDPWSSD which adds as well.
 *
 * A code fills a byte; those of inputs 0 and 2 of a group become one register of pairs, those of 1 and 3 another. The
 * integers of x lie in that order.
 *
 * A level gives `bytes` (its integer register), `set_words`, `low_bytes`, `high_bytes_down` and `add_pairs`. */

#define LARGEST 32767
#define SIGNED_CODES 0

INLINE void store_integers(int16_t *block, int at, vi whole) {
    typedef int16_t shorts __attribute__((vector_size(LANES * 2), aligned(2), may_alias));
    *(shorts *)(block + at) = __builtin_convertvector(SHUFFLE(whole, MIDDLE_SWAPPED), shorts);
}

INLINE bytes same_pair(const int16_t *p) {
    int word;
    memcpy(&word, p, sizeof word);
    return set_words(word);
}

INLINE void dot_groups(vi acc[][PARTS], const uint8_t *codes, const int first, const int groups, const int16_t *x,
                       long stride, const int rows, enum codes kind) {
    (void)kind;
    bytes sum[DOT_ROWS][PARTS];
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < PARTS; p++) sum[r][p] = set_words(0);
    KEEP_LOOP
    for (int g = first; g < first + groups; g++) {
        for (int odd = 0; odd < 2; odd++) { /* one after the other: they need not be in registers at once */
            bytes w[PARTS];
            for (int p = 0; p < PARTS; p++) {
                bytes both = *(const bytes_anywhere *)(codes + g * GROUP_BYTES + p * sizeof(bytes));
                w[p] = odd ? high_bytes_down(both) : low_bytes(both);
            }
            for (int r = 0; r < rows; r++) {
                bytes v = same_pair(x + r * stride + g * 4 + 2 * odd);
                for (int p = 0; p < PARTS; p++) sum[r][p] = add_pairs(sum[r][p], w[p], v);
            }
        }
    }
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < PARTS; p++) acc[r][p] = (vi)sum[r][p];
}
