/* Attention with AMX, for bfloat16 keys and values: `attention.c` with tiles in the place of vectors.
 *
 * Weights are rounded to bfloat16 before they meet the values, as GPU kernels do; their sum is not. */
#include "attention.h"

#if HAVE_X86_KERNELS
#include "amx.h"

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
AMX static inline void transpose16(__m512i r[16]) {
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

AMX static void stage_key_tiles(struct tiles *s, const struct attention *job, const long at[16], long group) {
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
AMX static void stage_value_pair(struct tiles *s, const struct attention *job, long even, long odd, long pair) {
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

AMX static void prefetch_block(const struct rows *s, const struct attention *job, long block) {
    for (long k = block; k < block + BLOCK && k < s->last; k++) {
        long at = key_at(s, job, k);
        for (long d = 0; d < job->h.head_dim; d += 32) {
            _mm_prefetch((const char *)((const uint16_t *)job->keys + at + d), _MM_HINT_T0);
            _mm_prefetch((const char *)((const uint16_t *)job->values + at + d), _MM_HINT_T0);
        }
    }
}

AMX static void stage_block(struct tiles *s, const struct attention *job, long block, long keys) {
    for (long k = 0; k < (keys + 31) / 32 * 32; k += 16) {
        long at[16];
        for (int i = 0; i < 16; i++) at[i] = key_at(&s->rows, job, block + k + i);
        stage_key_tiles(s, job, at, k / 16);
        for (int i = 0; i < 16; i += 2) stage_value_pair(s, job, at[i], at[i + 1], (k + i) / 2);
    }
}

AMX static void score_tiles(struct tiles *s, long hd, long keys, int lower) {
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

AMX static void mix_tiles(struct tiles *s, long hd, long keys, int lower) {
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

AMX static void weigh(struct tiles *s, const struct attention *job, long block, long keys) {
    for (long r = 0; r < s->rows.count; r++) {
        float *scores = s->rows.scores + r * BLOCK;
        for (int i = 0; i < BLOCK; i += LANES) {
            vf scaled = load_float(scores + i) * job->scale;
            memcpy(scores + i, &scaled, sizeof scaled);
        }
        bend_scores(&s->rows, job, r, block);
        softmax_row(&s->rows, job->h.head_dim, r, block, keys);
        for (int i = 0; i < BLOCK; i += 2 * LANES) {
            __m512bh both = _mm512_cvtne2ps_pbh(_mm512_load_ps(scores + i + LANES), _mm512_load_ps(scores + i));
            _mm512_store_si512(s->weights + r * BLOCK + i, (__m512i)both);
        }
    }
}

AMX void attend_amx(const struct attention *job, long seq, long query, long count, long kv_head) {
    struct tiles s;
    long hd = job->h.head_dim;
    begin_rows(&s.rows, job, seq, query, count, kv_head);
    int upper = s.rows.count < TILE_ROWS ? s.rows.count : TILE_ROWS, lower = s.rows.count - upper;
    for (long r = 0; r < s.rows.count; r++)
        memcpy(s.q + r * hd, (const uint16_t *)job->q + s.rows.at[r], hd * sizeof(uint16_t));
    configure(upper, lower);
    long block = s.rows.earliest / BLOCK * BLOCK;
    prefetch_block(&s.rows, job, block);
    for (; block < s.rows.last; block += BLOCK) {
        long left = s.rows.last - block, keys = left < BLOCK ? left : BLOCK;
        stage_block(&s, job, block, keys);
        prefetch_block(&s.rows, job, block + BLOCK);
        score_tiles(&s, hd, keys, lower);
        weigh(&s, job, block, keys);
        mix_tiles(&s, hd, keys, lower);
    }
    _tile_release();
    finish_rows(&s.rows, job, BFLOAT16);
}

#else
void attend_amx(const struct attention *job, long seq, long query, long count, long kv_head) {
    (void)job, (void)seq, (void)query, (void)count, (void)kv_head;
}
#endif
