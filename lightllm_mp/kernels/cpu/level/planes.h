/* Integers of 16 bits as two planes of signed bytes, 256 * high + low, for instructions that multiply bytes.
 *
 * A block of x is its 32 high bytes, then its 32 low ones. PLANES is a file with SIGNED_CODES and dot_plane: products of
 * rows of bytes with the codes of some groups. */
#include PLANES

#define LARGEST 32639 /* 127 * 256 + 127 */

INLINE void store_integers(int16_t *block, int at, vi whole) {
    int8_t *high = (int8_t *)block + at, *low = high + INPUTS;
    for (int i = 0; i < LANES; i++) {
        int top = (whole[i] + 128) >> 8;
        high[i] = (int8_t)top;
        low[i] = (int8_t)(whole[i] - top * 256);
    }
}

INLINE void dot_groups(vi acc[][PARTS], const uint8_t *codes, const int first, const int groups, const int16_t *x,
                       long stride, const int rows, enum codes kind) {
    const int8_t *high = (const int8_t *)x + first * 4;
    vi low[DOT_ROWS][PARTS];
    dot_plane(acc, codes + first * GROUP_BYTES, groups, high, 2 * stride, rows, kind);
    dot_plane(low, codes + first * GROUP_BYTES, groups, high + INPUTS, 2 * stride, rows, kind);
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < PARTS; p++) acc[r][p] = (vi)((vu)acc[r][p] << 8) + low[r][p];
}
