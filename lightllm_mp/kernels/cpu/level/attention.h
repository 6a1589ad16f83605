/* Causal attention of new tokens over their sequence's KV slots, for prefill and decode alike.
 *
 * A task is a few query tokens of one sequence and the query heads of one key-value head. Keys are taken in blocks of
 * 64 that begin at multiples of 64 of the position, with a running maximum and sum (online softmax). Those of a segment
 * are summed up by themselves, then added to what came of the segments before; a task may be one segment alone. Which
 * blocks a query takes, and the order inside a block, follow from its position alone: neither chunks nor threads change
 * a bit. */
#include "softmax_rows.h"

#if LANES >= 8
#define SQUARE 8
#else
#define SQUARE 4
#endif
typedef uint32_t line __attribute__((vector_size(SQUARE * 4)));
typedef line line_anywhere ANYWHERE;

#ifdef __clang__
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, (line){__VA_ARGS__})
#endif

struct scratch {
    float keys[MAX_HEAD_DIM * BLOCK];   /* [head_dim][BLOCK] */
    float values[BLOCK * MAX_HEAD_DIM]; /* [BLOCK][head_dim] */
    float q[MAX_ROWS * MAX_HEAD_DIM];   /* [rows][head_dim], scaled */
    float wide[SQUARE * MAX_HEAD_DIM];  /* keys of 8 bits as floats */
    struct rows rows;
} __attribute__((aligned(64)));

/* Transposes SQUARE x SQUARE words: line i becomes column i. */
INLINE void transpose(line r[SQUARE]) {
#if SQUARE == 8
    line a[8], b[8];
    for (int i = 0; i < 8; i += 2) {
        a[i] = PICK(r[i], r[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        a[i + 1] = PICK(r[i], r[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            b[i + 2 * j] = PICK(a[i + j], a[i + 2 + j], 0, 1, 8, 9, 4, 5, 12, 13);
            b[i + 2 * j + 1] = PICK(a[i + j], a[i + 2 + j], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    for (int i = 0; i < 4; i++) {
        r[i] = PICK(b[i], b[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        r[i + 4] = PICK(b[i], b[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
#else
    line a = PICK(r[0], r[1], 0, 4, 1, 5), b = PICK(r[0], r[1], 2, 6, 3, 7);
    line c = PICK(r[2], r[3], 0, 4, 1, 5), d = PICK(r[2], r[3], 2, 6, 3, 7);
    r[0] = PICK(a, c, 0, 1, 4, 5);
    r[1] = PICK(a, c, 2, 3, 6, 7);
    r[2] = PICK(b, d, 0, 1, 4, 5);
    r[3] = PICK(b, d, 2, 3, 6, 7);
#endif
}

/* Keys of SQUARE slots into columns [column, column + SQUARE) of the transposed block. */
INLINE void stage_keys(float *to, const char *const *from, long head_dim, long column, enum dtype type) {
    long words = type == BFLOAT16 ? head_dim / 2 : head_dim;
    for (long w = 0; w < words; w += SQUARE) {
        line r[SQUARE];
        for (int i = 0; i < SQUARE; i++) {
            r[i] = *(const line_anywhere *)(from[i] + w * 4);
        }
        transpose(r);
        for (int i = 0; i < SQUARE; i++) {
            if (type == BFLOAT16) {
                line even = r[i] << 16, odd = r[i] & 0xffff0000u;
                *(line_anywhere *)(to + 2 * (w + i) * BLOCK + column) = even;
                *(line_anywhere *)(to + (2 * (w + i) + 1) * BLOCK + column) = odd;
            } else {
                *(line_anywhere *)(to + (w + i) * BLOCK + column) = r[i];
            }
        }
    }
}

/* A head of 8-bit values at element `at` of a pool, times its scale. */
INLINE void widen_head(float *to, const void *pool, const uint16_t *scales, long at, long head_dim, enum dtype type) {
    float scale = half_float(scales[at / head_dim]);
    for (long d = 0; d < head_dim; d += LANES) {
        const char *p = (const char *)pool + at + d;
        vf v = (type == INT8 ? load_int8(p) : load_e4m3(p)) * scale;
        store_float(to + d, v);
    }
}

static const char zeros[MAX_HEAD_DIM * 4];

INLINE void stage_square(struct scratch *s, const struct attention *job, long block, long column, enum dtype type) {
    const char *from[SQUARE];
    long hd = job->h.head_dim, size = type == BFLOAT16 ? 2 : 4;
    for (int i = 0; i < SQUARE; i++) {
        long at = key_at(&s->rows, job, block + column + i);
        float *value = s->values + (column + i) * hd;
        if (at < 0) {
            from[i] = zeros;
            memset(value, 0, hd * sizeof *value);
        } else if (type == INT8 || type == FLOAT8) {
            widen_head(s->wide + i * hd, job->keys, job->key_scales, at, hd, type);
            widen_head(value, job->values, job->value_scales, at, hd, type);
            from[i] = (const char *)(s->wide + i * hd);
        } else {
            from[i] = (const char *)job->keys + at * size;
            for (long d = 0; d < hd; d += LANES) store(value, d, load(job->values, at + d, type), FLOAT32);
        }
    }
    stage_keys(s->keys, from, hd, column, type == BFLOAT16 ? BFLOAT16 : FLOAT32);
}

/* Keys and values lie here and there in the pool: no prefetcher of the processor follows them. */
INLINE void prefetch_block(const struct rows *s, const struct attention *job, long block) {
    long size = job->kv_type == FLOAT32 ? 4 : job->kv_type == BFLOAT16 ? 2 : 1, bytes = job->h.head_dim * size;
    for (long k = block; k < block + BLOCK && k < s->last; k++) {
        long at = key_at(s, job, k) * size;
        for (long line = 0; line < bytes; line += 64) {
            __builtin_prefetch((const char *)job->keys + at + line);
            __builtin_prefetch((const char *)job->values + at + line);
        }
    }
}

static void stage_block(struct scratch *s, const struct attention *job, long block, long keys) {
    for (long column = 0; column < keys; column += SQUARE) {
        switch (job->kv_type) {
            case BFLOAT16: stage_square(s, job, block, column, BFLOAT16); break;
            case INT8: stage_square(s, job, block, column, INT8); break;
            case FLOAT8: stage_square(s, job, block, column, FLOAT8); break;
            default: stage_square(s, job, block, column, FLOAT32); break;
        }
    }
}

/* Scores of `rows` rows against LANES * 2 keys: one accumulator each, in order of the head's components. */
INLINE void score_rows(const struct scratch *s, long head_dim, long row, const int rows, long column, float *to) {
    vf acc[SCORE_ROWS][2];
    for (int r = 0; r < rows; r++) acc[r][0] = acc[r][1] = (vf){0};
    for (long d = 0; d < head_dim; d++) {
        vf k0 = load_float(s->keys + d * BLOCK + column), k1 = load_float(s->keys + d * BLOCK + column + LANES);
        for (int r = 0; r < rows; r++) {
            vf q = splat(s->q[(row + r) * head_dim + d]);
            acc[r][0] = multiply_add(q, k0, acc[r][0]);
            acc[r][1] = multiply_add(q, k1, acc[r][1]);
        }
    }
    for (int r = 0; r < rows; r++) {
        store_float(to + (row + r) * BLOCK + column, acc[r][0]);
        store_float(to + (row + r) * BLOCK + column + LANES, acc[r][1]);
    }
}

/* out += weights @ values for `rows` rows and 2 * LANES (or LANES) components, in order of the keys. */
INLINE void mix_rows_of(struct scratch *s, long head_dim, long row, const int rows, long d, const int wide, long keys) {
    vf acc[SCORE_ROWS][2];
    for (int r = 0; r < rows; r++)
        for (int w = 0; w < wide; w++) acc[r][w] = load_float(s->rows.out + (row + r) * head_dim + d + w * LANES);
    for (long k = 0; k < keys; k++) {
        vf v[2];
        for (int w = 0; w < wide; w++) v[w] = load_float(s->values + k * head_dim + d + w * LANES);
        for (int r = 0; r < rows; r++)
            for (int w = 0; w < wide; w++)
                acc[r][w] = multiply_add(splat(s->rows.scores[(row + r) * BLOCK + k]), v[w], acc[r][w]);
    }
    for (int r = 0; r < rows; r++)
        for (int w = 0; w < wide; w++) store_float(s->rows.out + (row + r) * head_dim + d + w * LANES, acc[r][w]);
}

#if SCORE_ROWS == 8
#define EACH_ROW_GROUP(r, rows, one)                            \
    do {                                                        \
        long r = 0;                                             \
        for (; r + 8 <= (rows); r += 8) one(r, 8);              \
        if (r + 4 <= (rows)) { one(r, 4); r += 4; }             \
        if (r + 2 <= (rows)) { one(r, 2); r += 2; }             \
        if (r < (rows)) one(r, 1);                              \
    } while (0)
#else
#define EACH_ROW_GROUP(r, rows, one)                            \
    do {                                                        \
        long r = 0;                                             \
        for (; r + 4 <= (rows); r += 4) one(r, 4);              \
        if (r + 2 <= (rows)) { one(r, 2); r += 2; }             \
        if (r < (rows)) one(r, 1);                              \
    } while (0)
#endif

INLINE void score_block(struct scratch *s, long head_dim, long rows, long keys) {
    for (long column = 0; column < keys; column += 2 * LANES) {
#define SCORE(r, count) score_rows(s, head_dim, r, count, column, s->rows.scores)
        EACH_ROW_GROUP(r, rows, SCORE);
    }
}

INLINE void mix_columns(struct scratch *s, long head_dim, long rows, long d, const int wide, long keys) {
#define MIX(r, count) mix_rows_of(s, head_dim, r, count, d, wide, keys)
    EACH_ROW_GROUP(r, rows, MIX);
}

INLINE void mix_block(struct scratch *s, long head_dim, long rows, long keys) {
    long d = 0;
    for (; d + 2 * LANES <= head_dim; d += 2 * LANES) mix_columns(s, head_dim, rows, d, 2, keys);
    if (d < head_dim) mix_columns(s, head_dim, rows, d, 1, keys);
}

INLINE void scale_queries(struct scratch *s, const struct attention *job, enum dtype type) {
    long hd = job->h.head_dim;
    for (long r = 0; r < s->rows.count; r++)
        for (long d = 0; d < hd; d += LANES)
            store(s->q, r * hd + d, load(job->q, s->rows.at[r] + d, type) * job->scale, FLOAT32);
}

static void attend(const struct attention *job, struct task task, long segment, float *part) {
    struct scratch s;
    long hd = job->h.head_dim;
    begin_rows(&s.rows, job, task, segment);
    if (job->type == BFLOAT16)
        scale_queries(&s, job, BFLOAT16);
    else
        scale_queries(&s, job, FLOAT32);
    long block = s.rows.earliest / BLOCK * BLOCK;
    prefetch_block(&s.rows, job, block);
    for (; block < s.rows.last; block += BLOCK) {
        long left = s.rows.last - block, keys = left < BLOCK ? left : BLOCK, padded = (keys + 31) / 32 * 32;
        if (block % ATTENTION_SEGMENT == 0) end_segment(&s.rows, hd);
        stage_block(&s, job, block, padded);
        prefetch_block(&s.rows, job, block + BLOCK);
        score_block(&s, hd, s.rows.count, padded);
        for (long r = 0; r < s.rows.count; r++) {
            bend_scores(&s.rows, job, r, block);
            softmax_row(&s.rows, hd, r, block, keys);
        }
        mix_block(&s, hd, s.rows.count, keys);
    }
    end_rows(&s.rows, job, part);
}

static void join_parts(const struct attention *job, struct task task, const float *parts, long segments) {
    struct rows s;
    long hd = job->h.head_dim;
    begin_rows(&s, job, task, ALL_SEGMENTS);
    for (long i = 0; i < segments; i++) {
        const float *max = parts + i * s.count * (hd + 2), *sum = max + s.count, *out = sum + s.count;
        for (long r = 0; r < s.count; r++) join_row(&s, hd, r, out + r * hd, max[r], sum[r]);
    }
    end_rows(&s, job, NULL);
}
