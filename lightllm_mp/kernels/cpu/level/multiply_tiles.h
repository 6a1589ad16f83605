/* Unpacked blocks times many rows of x as integers of 16 bits, by AMX.
 *
 * An integer is 256 * high + low, with both and the codes less their zero point whole numbers that bfloat16 holds. Sums
 * of a scale's inputs stay within 2^24 for the formats that `in_tiles` names, so float32 holds them exactly, whatever
 * their order: they are those of multiply.h, and so is what is made of them. */
INLINE int in_tiles(const struct format *f) {
    switch (f->codes) {
        case CODES_5: return f->zero == 16;
        case CODES_8:
        case CODES_TABLE: return 0;
        default: return 1;
    }
}

#define SCALED (CHUNK_BLOCKS * 2) /* groups of inputs with a scale each, the most in a chunk */

struct weight_tiles {
    /* Of each group of inputs with a scale and each panel: [pairs of inputs][OUTPUTS][2]. */
    uint16_t weights[SCALED][DOT_PANELS][INPUTS * OUTPUTS];
    float dots[2][TILE_ROWS * WIDTH]; /* [rows][WIDTH] of two such groups */
} __attribute__((aligned(64)));

/* Tiles 0-3: sums of two groups and two panels; 4, 5: digits of x; 6, 7: weights. */
INLINE void configure_dots(int rows, int inputs) {
    struct tile_config config = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        config.bytes[t] = t == 4 || t == 5 ? inputs * 2 : 64;
        config.rows[t] = t < 6 ? rows : inputs / 2;
    }
    _tile_loadconfig(&config);
}

/* Inputs 0 and 2 of a group of four are a pair, then 1 and 3: x lies in that order. */
INLINE void make_tiles(const struct unpacked *u, struct weight_tiles *t, long count, const struct format *f) {
    __m512i table[2], order = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    for (int i = 0; i < 2; i++) { /* bfloat16 of each code below 64 */
        __m512i low = _mm512_add_epi32(order, _mm512_set1_epi32(32 * i - f->zero));
        __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(16));
        table[i] = (__m512i)_mm512_cvtne2ps_pbh(_mm512_cvtepi32_ps(high), _mm512_cvtepi32_ps(low));
    }
    const int groups = GROUPS / f->subs;
    for (long i = 0; i < count * f->subs; i++)
        for (int p = 0; p < DOT_PANELS; p++)
            for (int g = 0; g < groups; g++) { /* the low bits of a word choose: the other byte does not matter */
                __m512i codes = _mm512_load_si512(u->codes + (i * groups + g) * WIDTH * 4 + p * GROUP_BYTES);
                __m512i odd = _mm512_srli_epi16(codes, 8);
                uint16_t *to = t->weights[i][p] + g * 4 * OUTPUTS;
                _mm512_store_si512(to, _mm512_permutex2var_epi16(table[0], codes, table[1]));
                _mm512_store_si512(to + 2 * OUTPUTS, _mm512_permutex2var_epi16(table[0], odd, table[1]));
            }
}

/* The sums of group i in tiles `one` and `two`, of a panel each. */
#define DOT_OF(i, one, two)                                                   \
    do {                                                                      \
        _tile_zero(one);                                                      \
        _tile_zero(two);                                                      \
        _tile_loadd(6, t->weights[i][0], 64);                                 \
        _tile_loadd(7, t->weights[i][1], 64);                                 \
        const uint16_t *x_digits = digits + DIGITS_OF(i, f->subs);            \
        _tile_loadd(4, x_digits, stride * 2);                                 \
        _tile_dpbf16ps(one, 4, 6);                                            \
        _tile_dpbf16ps(two, 4, 7);                                            \
        _tile_loadd(5, x_digits + INPUTS, stride * 2);                        \
        _tile_dpbf16ps(one, 5, 6);                                            \
        _tile_dpbf16ps(two, 5, 7);                                            \
        _tile_stored(one, t->dots[(i) % 2], WIDTH * 4);                       \
        _tile_stored(two, t->dots[(i) % 2] + OUTPUTS, WIDTH * 4);             \
    } while (0)
#define DIGITS_OF(i, subs) ((i) / (subs) * 2 * INPUTS + (i) % (subs) * INPUTS / (subs))

/* totals [rows][WIDTH] += the sums of groups [i, i + some), as multiply.h adds them. */
INLINE void add_scaled(const struct unpacked *u, const struct weight_tiles *t, float *totals, const struct rounded *x,
                       long begin, long rows, long i, const int some, const struct format *f) {
    for (long r = 0; r < rows; r++)
        for (int p = 0; p < PARTS; p++) {
            vf v = load_float(totals + r * WIDTH + p * LANES);
            for (int j = 0; j < some; j++) {
                long at = begin + r * x->blocks + (i + j) / f->subs, scaled = (i + j) * WIDTH + p * LANES;
                vf dots = load_float(t->dots[j] + r * WIDTH + p * LANES);
                v = multiply_add(dots, load_float(u->scales + scaled) * x->scales[at], v);
                if (f->minimum != NO_MINIMUM)
                    v = multiply_add(load_float(u->minima + scaled),
                                     splat(x->weighted[at * SUMS + (f->subs == 2 ? j : WHOLE)]), v);
            }
            store_float(totals + r * WIDTH + p * LANES, v);
        }
}

INLINE void multiply_all(const struct rounded *x, struct unpacked *u, long row, long rows, long first, long count,
                         const struct format *f) {
    struct weight_tiles tiles, *t = &tiles;
    const long stride = x->blocks * 2 * INPUTS, groups = count * f->subs;
    long configured = 0;
    make_tiles(u, t, count, f);
    for (long r = 0; r < rows; r += TILE_ROWS) {
        long some = rows - r < TILE_ROWS ? rows - r : TILE_ROWS, begin = (row + r) * x->blocks + first, i = 0;
        const uint16_t *digits = x->digits + begin * 2 * INPUTS;
        float *totals = u->sums + r * WIDTH;
        if (some != configured) configure_dots(some, INPUTS / f->subs);
        configured = some;
        for (; i + 2 <= groups; i += 2) {
            DOT_OF(i, 0, 1);
            DOT_OF(i + 1, 2, 3);
            add_scaled(u, t, totals, x, begin, some, i, 2, f);
        }
        if (i < groups) {
            DOT_OF(i, 0, 1);
            add_scaled(u, t, totals, x, begin, some, i, 1, f);
        }
    }
}
