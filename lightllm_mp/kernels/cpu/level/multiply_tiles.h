/* Unpacked blocks times rows of x in bfloat16, by AMX.
 *
 * A code without its zero point is a whole number below 2^8 and x is what it is, so every product is exact; tiles add those
 * of a scale's inputs in float32. One row goes the same way as many: its bits are the same. */
#define SCALED (CHUNK_BLOCKS * 2) /* groups of inputs with a scale each, the most in a chunk */

struct weight_tiles {
    /* Of each group of inputs with a scale and each panel: [pairs of inputs][OUTPUTS][2]. */
    uint16_t weights[SCALED][DOT_PANELS][INPUTS * OUTPUTS];
    float dots[2][TILE_ROWS * WIDTH]; /* [rows][WIDTH] of two such groups */
} __attribute__((aligned(64)));

/* Tiles 0-3: sums of two groups and two panels; 4, 5: x; 6, 7: weights. */
INLINE void configure_dots(int rows, int inputs) {
    struct tile_config config = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        config.bytes[t] = t == 4 || t == 5 ? inputs * 2 : 64;
        config.rows[t] = t < 6 ? rows : inputs / 2;
    }
    _tile_loadconfig(&config);
}

/* Whole numbers in [-128, 127], a register of them, as the upper halves of their floats: bfloat16, exactly. */
INLINE __m512i whole_floats(__m512i v) { return (__m512i)_mm512_cvtepi32_ps(v); }

/* bfloat16 of the codes in the low bytes of words (`odd`: in the high ones) less the zero point. Codes below 64 are
 * places in `table`. */
INLINE __m512i code_floats(__m512i codes, const int odd, const struct format *f, const __m512i table[2]) {
    __m512i words = odd ? _mm512_srli_epi16(codes, 8) : codes;
    if (f->codes != CODES_8 && f->codes != CODES_TABLE) return _mm512_permutex2var_epi16(table[0], words, table[1]);
    __m512i byte = _mm512_set1_epi32(0xff), zero = _mm512_set1_epi32(f->zero);
    __m512i low = _mm512_sub_epi32(_mm512_and_si512(words, byte), zero);
    __m512i high = _mm512_sub_epi32(_mm512_and_si512(_mm512_srli_epi32(words, 16), byte), zero);
    return _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(whole_floats(low), 16), whole_floats(high));
}

/* Inputs 0 and 2 of a group of four are a pair, then 1 and 3: x lies in that order. */
INLINE void make_tiles(const struct unpacked *u, struct weight_tiles *t, long count, const struct format *f) {
    __m512i table[2], order = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    for (int i = 0; i < 2; i++) {
        __m512i low = _mm512_add_epi32(order, _mm512_set1_epi32(32 * i - f->zero));
        __m512 floats = (__m512)whole_floats(low), next = (__m512)whole_floats(_mm512_add_epi32(low, _mm512_set1_epi32(16)));
        table[i] = (__m512i)_mm512_cvtne2ps_pbh(next, floats);
    }
    const int groups = GROUPS / f->subs;
    for (long i = 0; i < count * f->subs; i++)
        for (int p = 0; p < DOT_PANELS; p++)
            for (int g = 0; g < groups; g++) {
                __m512i codes = _mm512_load_si512(u->codes + (i * groups + g) * WIDTH * 4 + p * GROUP_BYTES);
                uint16_t *to = t->weights[i][p] + g * 4 * OUTPUTS;
                _mm512_store_si512(to, code_floats(codes, 0, f, table));
                _mm512_store_si512(to + 2 * OUTPUTS, code_floats(codes, 1, f, table));
            }
}

/* The sums of group i in tiles `one` and `two`, of a panel each, by way of tile `left`. */
#define DOT_OF(i, one, two, left)                                           \
    do {                                                                    \
        _tile_zero(one);                                                    \
        _tile_zero(two);                                                    \
        _tile_loadd(left, x_values + (i) * INPUTS / f->subs, stride * 2);   \
        _tile_loadd(6, t->weights[i][0], 64);                               \
        _tile_dpbf16ps(one, left, 6);                                       \
        _tile_loadd(7, t->weights[i][1], 64);                               \
        _tile_dpbf16ps(two, left, 7);                                       \
        _tile_stored(one, t->dots[(i) % 2], WIDTH * 4);                     \
        _tile_stored(two, t->dots[(i) % 2] + OUTPUTS, WIDTH * 4);           \
    } while (0)

/* totals [rows][WIDTH] += the sums of groups [i, i + some) times their scales, and minima times the sums of x. */
INLINE void add_scaled(const struct unpacked *u, const struct weight_tiles *t, float *totals, const float *x_sums,
                       long blocks, long rows, long i, const int some, const struct format *f) {
    for (long r = 0; r < rows; r++)
        for (int p = 0; p < PARTS; p++) {
            vf v = load_float(totals + r * WIDTH + p * LANES);
            for (int j = 0; j < some; j++) {
                long at = (i + j) * WIDTH + p * LANES, sum = f->subs == 2 ? (i + j) / 2 * SUMS + j : (i + j) * SUMS + WHOLE;
                v = multiply_add(load_float(t->dots[j] + r * WIDTH + p * LANES), load_float(u->scales + at), v);
                if (f->minimum != NO_MINIMUM)
                    v = multiply_add(load_float(u->minima + at), splat(x_sums[r * blocks * SUMS + sum]), v);
            }
            store_float(totals + r * WIDTH + p * LANES, v);
        }
}

INLINE void multiply_all(const struct rounded *x, struct unpacked *u, long row, long rows, long first, long count,
                         const struct format *f) {
    struct weight_tiles tiles, *t = &tiles;
    const long blocks = x->blocks, stride = blocks * INPUTS, groups = count * f->subs;
    long configured = 0;
    make_tiles(u, t, count, f);
    for (long r = 0; r < rows; r += TILE_ROWS) {
        long some = rows - r < TILE_ROWS ? rows - r : TILE_ROWS, begin = (row + r) * blocks + first, i = 0;
        const int16_t *x_values = x->values + begin * INPUTS;
        if (some != configured) configure_dots(some, INPUTS / f->subs);
        configured = some;
        for (; i + 2 <= groups; i += 2) {
            DOT_OF(i, 0, 1, 4);
            DOT_OF(i + 1, 2, 3, 5);
            add_scaled(u, t, u->sums + r * WIDTH, x->weighted + begin * SUMS, blocks, some, i, 2, f);
        }
        if (i < groups) {
            DOT_OF(i, 0, 1, 4);
            add_scaled(u, t, u->sums + r * WIDTH, x->weighted + begin * SUMS, blocks, some, i, 1, f);
        }
    }
}
