/* AMX: products of bfloat16 tiles. Sums are in tiles 0-3, the left operand in 4 and 5, the right one in 6 and 7. */
#ifdef __x86_64__
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,amx-tile,amx-bf16"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,bmi2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,amx-tile,amx-bf16")
#endif
#include "x86_512.h"

#include <math.h>

#include "vector.h"

#include "softmax_rows.h"
#include "store.h"

#define AHEAD 4096 /* bytes */
#define TILE_ROWS 16

struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
};

/* Tiles 0-3: sums (upper, lower rows) x (left, right columns); 4, 5: x; 6, 7: weight. */
static inline void configure(int upper, int lower) {
    struct tile_config config = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        config.bytes[t] = 64;
        config.rows[t] = TILE_ROWS;
    }
    config.rows[0] = config.rows[1] = config.rows[4] = upper;
    config.rows[2] = config.rows[3] = config.rows[5] = lower ? lower : 1;
    _tile_loadconfig(&config);
}

/* `store_panel` for the usual case, a whole panel to bfloat16. */
static void store_whole(const struct gemm *g, const float *sums, long row, long rows, long panel) {
    const float *bias = g->bias ? g->bias + panel * PANEL : NULL;
    uint16_t *out = (uint16_t *)g->out + row * g->n + panel * PANEL;
    for (long r = 0; r < rows; r++, sums += PANEL, out += g->n) {
        __m512 left = _mm512_loadu_ps(sums), right = _mm512_loadu_ps(sums + LANES);
        if (bias) {
            left = _mm512_add_ps(left, _mm512_loadu_ps(bias));
            right = _mm512_add_ps(right, _mm512_loadu_ps(bias + LANES));
        }
        _mm512_storeu_si512(out, (__m512i)_mm512_cvtne2ps_pbh(right, left));
    }
}

static void tiles_one(const uint16_t *x, long k, const uint16_t *packed, float *sums) {
    _tile_zero(0);
    _tile_zero(1);
    for (long i = 0; i < k; i += 32) {
        for (int line = 0; line < 32; line++) /* weights are read once: the next page would not be prefetched */
            _mm_prefetch((const char *)(packed + i * PANEL) + AHEAD + line * 64, _MM_HINT_T0);
        _tile_loadd(4, x + i, k * 2);
        _tile_loadd(6, packed + i * PANEL, PANEL * 4);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, packed + i * PANEL + 2 * LANES, PANEL * 4);
        _tile_dpbf16ps(1, 4, 7);
    }
    _tile_stored(0, sums, PANEL * 4);
    _tile_stored(1, sums + LANES, PANEL * 4);
}

static void tiles_two(const uint16_t *x, long k, const uint16_t *packed, float *sums) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (long i = 0; i < k; i += 32) {
        _tile_loadd(4, x + i, k * 2);
        _tile_loadd(6, packed + i * PANEL, PANEL * 4);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, packed + i * PANEL + 2 * LANES, PANEL * 4);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, x + TILE_ROWS * k + i, k * 2);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums, PANEL * 4);
    _tile_stored(1, sums + LANES, PANEL * 4);
    _tile_stored(2, sums + TILE_ROWS * PANEL, PANEL * 4);
    _tile_stored(3, sums + TILE_ROWS * PANEL + LANES, PANEL * 4);
}

static void bf16_panel(const struct gemm *g, const void *rows_of_x, long row, long rows, long panel) {
    const uint16_t *x = rows_of_x;
    long k = (g->k + 31) / 32 * 32;
    const uint16_t *packed = (const uint16_t *)g->packed + panel * PANEL * k;
    float sums[2 * TILE_ROWS * PANEL] __attribute__((aligned(64)));
    int upper_now = -1, lower_now = -1;
    for (long r = 0; r < rows; r += 2 * TILE_ROWS) {
        long some = rows - r < 2 * TILE_ROWS ? rows - r : 2 * TILE_ROWS;
        int upper = some < TILE_ROWS ? some : TILE_ROWS, lower = some - upper;
        if (upper != upper_now || lower != lower_now) configure(upper, lower);
        upper_now = upper;
        lower_now = lower;
        if (lower)
            tiles_two(x + (row + r) * k, k, packed, sums);
        else
            tiles_one(x + (row + r) * k, k, packed, sums);
        if (g->out_type == BFLOAT16 && (panel + 1) * PANEL <= g->n)
            store_whole(g, sums, row + r, some, panel);
        else
            store_panel(g, sums, row + r, some, panel);
    }
    _tile_release();
}

/* Attention for bfloat16 keys and values: attention.h with tiles in the place of vectors.
 *
 * Weights are rounded to bfloat16 before they meet the values, as GPU kernels do; their sum is not. */
struct tiles {
    /* Keys as [head_dim / 32][BLOCK / 16] tiles of [16 pairs of components][16 keys][2]. */
    uint16_t keys[MAX_HEAD_DIM * BLOCK];
    /* Values as [BLOCK / 32][head_dim / 16] tiles of [16 pairs of keys][16 components][2]. */
    uint16_t values[BLOCK * MAX_HEAD_DIM];
    uint16_t q[MAX_ROWS * MAX_HEAD_DIM]; /* [rows][head_dim] */
    uint16_t weights[MAX_ROWS * BLOCK];  /* [rows][BLOCK] */
    struct rows rows;
} __attribute__((aligned(64)));

#define TILE 512 /* values in a tile */

/* 16 x 16 words, row i of `r` becomes column i. */
static inline void transpose16(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

static void stage_key_tiles(struct tiles *s, const struct attention *job, const long at[16], long group) {
    for (long d = 0; d < job->h.head_dim; d += 32) {
        __m512i r[16];
        for (int i = 0; i < 16; i++)
            r[i] = at[i] < 0 ? _mm512_setzero_si512() : _mm512_loadu_si512((const uint16_t *)job->keys + at[i] + d);
        transpose16(r);
        uint16_t *tile = s->keys + (d / 32 * (BLOCK / 16) + group) * TILE;
        for (int i = 0; i < 16; i++) _mm512_store_si512(tile + i * 32, r[i]);
    }
}

/* Interleaves the values of two neighbouring keys. */
static void stage_value_pair(struct tiles *s, const struct attention *job, long even, long odd, long pair) {
    static const uint16_t order[32] = {0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39,
                                       8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    long hd = job->h.head_dim;
    __m512i low = _mm512_loadu_si512(order), high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    uint16_t *tiles = s->values + pair / 16 * (hd / 16) * TILE + pair % 16 * 32;
    for (long d = 0; d < hd; d += 32) {
        __m512i a = even < 0 ? _mm512_setzero_si512() : _mm512_loadu_si512((const uint16_t *)job->values + even + d);
        __m512i b = odd < 0 ? _mm512_setzero_si512() : _mm512_loadu_si512((const uint16_t *)job->values + odd + d);
        _mm512_store_si512(tiles + d / 16 * TILE, _mm512_permutex2var_epi16(a, low, b));
        _mm512_store_si512(tiles + (d / 16 + 1) * TILE, _mm512_permutex2var_epi16(a, high, b));
    }
}

static void prefetch_tiles(const struct rows *s, const struct attention *job, long block) {
    for (long k = block; k < block + BLOCK && k < s->last; k++) {
        long at = key_at(s, job, k);
        for (long d = 0; d < job->h.head_dim; d += 32) {
            _mm_prefetch((const char *)((const uint16_t *)job->keys + at + d), _MM_HINT_T0);
            _mm_prefetch((const char *)((const uint16_t *)job->values + at + d), _MM_HINT_T0);
        }
    }
}

static void stage_block(struct tiles *s, const struct attention *job, long block, long keys) {
    for (long k = 0; k < (keys + 31) / 32 * 32; k += 16) {
        long at[16];
        for (int i = 0; i < 16; i++) at[i] = key_at(&s->rows, job, block + k + i);
        stage_key_tiles(s, job, at, k / 16);
        for (int i = 0; i < 16; i += 2) stage_value_pair(s, job, at[i], at[i + 1], (k + i) / 2);
    }
}

static void score_tiles(struct tiles *s, long hd, long keys, int lower) {
    for (long group = 0; group < (keys + 15) / 16; group++) {
        _tile_zero(0);
        _tile_zero(2);
        for (long d = 0; d < hd / 32; d++) {
            _tile_loadd(6, s->keys + (d * (BLOCK / 16) + group) * TILE, 64);
            _tile_loadd(4, s->q + d * 32, hd * 2);
            _tile_dpbf16ps(0, 4, 6);
            if (!lower) continue;
            _tile_loadd(5, s->q + TILE_ROWS * hd + d * 32, hd * 2);
            _tile_dpbf16ps(2, 5, 6);
        }
        _tile_stored(0, s->rows.scores + group * 16, BLOCK * 4);
        if (lower) _tile_stored(2, s->rows.scores + TILE_ROWS * BLOCK + group * 16, BLOCK * 4);
    }
}

static void mix_tiles(struct tiles *s, long hd, long keys, int lower) {
    for (long d = 0; d < hd / 16; d++) {
        _tile_loadd(0, s->rows.out + d * 16, hd * 4);
        if (lower) _tile_loadd(2, s->rows.out + TILE_ROWS * hd + d * 16, hd * 4);
        for (long half = 0; half < (keys + 31) / 32; half++) {
            _tile_loadd(6, s->values + (half * (hd / 16) + d) * TILE, 64);
            _tile_loadd(4, s->weights + half * 32, BLOCK * 2);
            _tile_dpbf16ps(0, 4, 6);
            if (!lower) continue;
            _tile_loadd(5, s->weights + TILE_ROWS * BLOCK + half * 32, BLOCK * 2);
            _tile_dpbf16ps(2, 5, 6);
        }
        _tile_stored(0, s->rows.out + d * 16, hd * 4);
        if (lower) _tile_stored(2, s->rows.out + TILE_ROWS * hd + d * 16, hd * 4);
    }
}

static void weigh(struct tiles *s, const struct attention *job, long block, long keys) {
    for (long r = 0; r < s->rows.count; r++) {
        float *scores = s->rows.scores + r * BLOCK;
        for (int i = 0; i < BLOCK; i += LANES) {
            vf scaled = load_float(scores + i) * job->scale;
            store_float(scores + i, scaled);
        }
        bend_scores(&s->rows, job, r, block);
        softmax_row(&s->rows, job->h.head_dim, r, block, keys);
        for (int i = 0; i < BLOCK; i += 2 * LANES) {
            __m512bh both = _mm512_cvtne2ps_pbh(_mm512_load_ps(scores + i + LANES), _mm512_load_ps(scores + i));
            _mm512_store_si512(s->weights + r * BLOCK + i, (__m512i)both);
        }
    }
}

static void attend_tiles(const struct attention *job, struct task task, long segment, float *part) {
    struct tiles s;
    long hd = job->h.head_dim;
    begin_rows(&s.rows, job, task, segment);
    int upper = s.rows.count < TILE_ROWS ? s.rows.count : TILE_ROWS, lower = s.rows.count - upper;
    for (long r = 0; r < s.rows.count; r++)
        memcpy(s.q + r * hd, (const uint16_t *)job->q + s.rows.at[r], hd * sizeof(uint16_t));
    configure(upper, lower);
    long block = s.rows.earliest / BLOCK * BLOCK;
    prefetch_tiles(&s.rows, job, block);
    for (; block < s.rows.last; block += BLOCK) {
        long left = s.rows.last - block, keys = left < BLOCK ? left : BLOCK;
        if (block % ATTENTION_SEGMENT == 0) end_segment(&s.rows, hd);
        stage_block(&s, job, block, keys);
        prefetch_tiles(&s.rows, job, block + BLOCK);
        score_tiles(&s, hd, keys, lower);
        weigh(&s, job, block, keys);
        mix_tiles(&s, hd, keys, lower);
    }
    _tile_release();
    end_rows(&s.rows, job, part);
}

static void (*attend_vectors)(const struct attention *, struct task, long, float *);

static void attend(const struct attention *job, struct task task, long segment, float *part) {
    int fits = job->type == BFLOAT16 && job->kv_type == BFLOAT16 && job->h.head_dim % 32 == 0 && !job->shared;
    (fits ? attend_tiles : attend_vectors)(job, task, segment, part);
}

void amx_level(struct kernels *to) {
    to->float8_as_it_is = NULL; /* a whole panel is expanded, for tiles */
    attend_vectors = to->attend;
    to->bf16_panel = bf16_panel;
    to->attend = attend;
}

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
