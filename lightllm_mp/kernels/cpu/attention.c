/* Causal attention of new tokens over their sequence's KV slots, for prefill and decode alike.
 *
 * A task is a few query tokens of one sequence and the query heads of one key-value head. Keys are taken in blocks of
 * 64 that begin at multiples of 64 of the position, with a running maximum and sum (online softmax). Which blocks a
 * query takes, and the order inside a block, follow from its position alone: chunking cannot change a bit. */
#include "attention.h"

typedef uint32_t v8 __attribute__((vector_size(32)));

#ifdef __clang__
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, (v8){__VA_ARGS__})
#endif

struct scratch {
    float keys[MAX_HEAD_DIM * BLOCK];   /* [head_dim][BLOCK] */
    float values[BLOCK * MAX_HEAD_DIM]; /* [BLOCK][head_dim] */
    float q[MAX_ROWS * MAX_HEAD_DIM];   /* [rows][head_dim], scaled */
    struct rows rows;
} __attribute__((aligned(64)));

/* Transposes 8 x 8 words: row i of `in` becomes column i. */
INLINE void transpose8(v8 r[8]) {
    v8 a[8], b[8];
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
}

/* Keys of 8 slots into columns [column, column + 8) of the transposed block. */
INLINE void stage_keys(const struct attention *job, float *to, const long *at, long column, enum dtype type) {
    long words = type == BFLOAT16 ? job->h.head_dim / 2 : job->h.head_dim;
    for (long w = 0; w < words; w += 8) {
        v8 r[8];
        for (int i = 0; i < 8; i++) {
            if (at[i] < 0)
                r[i] = (v8){0};
            else if (type == BFLOAT16)
                memcpy(&r[i], (const uint16_t *)job->keys + at[i] + 2 * w, sizeof r[i]);
            else
                memcpy(&r[i], (const float *)job->keys + at[i] + w, sizeof r[i]);
        }
        transpose8(r);
        for (int i = 0; i < 8; i++) {
            if (type == BFLOAT16) {
                v8 even = r[i] << 16, odd = r[i] & 0xffff0000u;
                memcpy(to + 2 * (w + i) * BLOCK + column, &even, sizeof even);
                memcpy(to + (2 * (w + i) + 1) * BLOCK + column, &odd, sizeof odd);
            } else {
                memcpy(to + (w + i) * BLOCK + column, &r[i], sizeof r[i]);
            }
        }
    }
}

INLINE void stage_value(const struct attention *job, float *to, long at, enum dtype type) {
    for (long d = 0; d < job->h.head_dim; d += LANES)
        store(to, d, at < 0 ? (vf){0} : load(job->values, at + d, type), FLOAT32);
}

/* Scores of `rows` rows against LANES * 2 keys: one accumulator each, in order of the head's components. */
INLINE void score_rows(const struct scratch *s, long head_dim, long row, const int rows, long column, float *to) {
    vf acc[4][2];
    for (int r = 0; r < rows; r++) acc[r][0] = acc[r][1] = (vf){0};
    for (long d = 0; d < head_dim; d++) {
        vf k0 = load_float(s->keys + d * BLOCK + column), k1 = load_float(s->keys + d * BLOCK + column + LANES);
        for (int r = 0; r < rows; r++) {
            acc[r][0] += s->q[(row + r) * head_dim + d] * k0;
            acc[r][1] += s->q[(row + r) * head_dim + d] * k1;
        }
    }
    for (int r = 0; r < rows; r++) {
        memcpy(to + (row + r) * BLOCK + column, &acc[r][0], sizeof(vf));
        memcpy(to + (row + r) * BLOCK + column + LANES, &acc[r][1], sizeof(vf));
    }
}

/* out += weights @ values for `rows` rows and 2 * LANES (or LANES) components, in order of the keys. */
INLINE void mix_rows(struct scratch *s, long head_dim, long row, const int rows, long d, const int wide, long keys) {
    vf acc[4][2];
    for (int r = 0; r < rows; r++)
        for (int w = 0; w < wide; w++) acc[r][w] = load_float(s->rows.out + (row + r) * head_dim + d + w * LANES);
    for (long k = 0; k < keys; k++) {
        vf v[2];
        for (int w = 0; w < wide; w++) v[w] = load_float(s->values + k * head_dim + d + w * LANES);
        for (int r = 0; r < rows; r++)
            for (int w = 0; w < wide; w++) acc[r][w] += s->rows.scores[(row + r) * BLOCK + k] * v[w];
    }
    for (int r = 0; r < rows; r++)
        for (int w = 0; w < wide; w++) memcpy(s->rows.out + (row + r) * head_dim + d + w * LANES, &acc[r][w], sizeof(vf));
}

INLINE void score_block(struct scratch *s, long head_dim, long rows, long keys) {
    for (long column = 0; column < keys; column += 2 * LANES) {
        long r = 0;
        for (; r + 4 <= rows; r += 4) score_rows(s, head_dim, r, 4, column, s->rows.scores);
        if (rows - r == 3) score_rows(s, head_dim, r, 3, column, s->rows.scores);
        if (rows - r == 2) score_rows(s, head_dim, r, 2, column, s->rows.scores);
        if (rows - r == 1) score_rows(s, head_dim, r, 1, column, s->rows.scores);
    }
}

INLINE void mix_columns(struct scratch *s, long head_dim, long rows, long d, const int wide, long keys) {
    long r = 0;
    for (; r + 4 <= rows; r += 4) mix_rows(s, head_dim, r, 4, d, wide, keys);
    if (rows - r == 3) mix_rows(s, head_dim, r, 3, d, wide, keys);
    if (rows - r == 2) mix_rows(s, head_dim, r, 2, d, wide, keys);
    if (rows - r == 1) mix_rows(s, head_dim, r, 1, d, wide, keys);
}

INLINE void mix_block(struct scratch *s, long head_dim, long rows, long keys) {
    long d = 0;
    for (; d + 2 * LANES <= head_dim; d += 2 * LANES) mix_columns(s, head_dim, rows, d, 2, keys);
    if (d < head_dim) mix_columns(s, head_dim, rows, d, 1, keys);
}

/* Query tokens [query, query + count) of sequence `seq`, all query heads of `kv_head`. */
INLINE void attend(const struct attention *job, long seq, long query, long count, long kv_head, enum dtype type) {
    struct scratch s;
    long hd = job->h.head_dim;
    begin_rows(&s.rows, job, seq, query, count, kv_head);
    for (long r = 0; r < s.rows.count; r++)
        for (long d = 0; d < hd; d += LANES)
            store(s.q, r * hd + d, load(job->q, s.rows.at[r] + d, type) * job->scale, FLOAT32);
    for (long block = s.rows.earliest / BLOCK * BLOCK; block < s.rows.last; block += BLOCK) {
        long left = s.rows.last - block, keys = left < BLOCK ? left : BLOCK, padded = (keys + 31) / 32 * 32;
        for (long k = 0; k < padded; k += 8) {
            long at[8];
            for (int i = 0; i < 8; i++) at[i] = key_at(&s.rows, job, block + k + i);
            stage_keys(job, s.keys, at, k, type);
            for (int i = 0; i < 8; i++) stage_value(job, s.values + (k + i) * hd, at[i], type);
        }
        score_block(&s, hd, s.rows.count, padded);
        for (long r = 0; r < s.rows.count; r++) {
            bend_scores(&s.rows, job, r, block);
            softmax_row(&s.rows, hd, r, block, keys);
        }
        mix_block(&s, hd, s.rows.count, keys);
    }
    finish_rows(&s.rows, job, type);
}

CLONES static void attend_bf16(const struct attention *job, long seq, long query, long count, long kv_head) {
    attend(job, seq, query, count, kv_head, BFLOAT16);
}

CLONES static void attend_float(const struct attention *job, long seq, long query, long count, long kv_head) {
    attend(job, seq, query, count, kv_head, FLOAT32);
}

struct tiling {
    const struct attention *job;
    long queries; /* query tokens of a task */
    long tiles;   /* tasks per sequence and key-value head */
};

static void attention_task(void *arg, long task) {
    const struct tiling *t = arg;
    const struct attention *job = t->job;
    long kv_head = task % job->h.kv_heads, rest = task / job->h.kv_heads;
    /* The last tiles of a sequence see the most keys: they go first, so that no thread is left alone with one. */
    long seq = rest % job->sequences, query = (t->tiles - 1 - rest / job->sequences) * t->queries;
    long left = job->seq_start[seq + 1] - job->seq_start[seq] - query;
    if (left <= 0) return;
    long count = left < t->queries ? left : t->queries;
    if (job->type == BFLOAT16 && x86_level() == 2 && job->h.head_dim % 32 == 0)
        attend_amx(job, seq, query, count, kv_head);
    else if (job->type == BFLOAT16)
        attend_bf16(job, seq, query, count, kv_head);
    else
        attend_float(job, seq, query, count, kv_head);
}

void attention_run(const struct attention *job) {
    struct tiling t = {job, MAX_ROWS / (job->h.heads / job->h.kv_heads), 0};
    t.tiles = (job->max_query + t.queries - 1) / t.queries;
    parallel_for(attention_task, &t, t.tiles * job->sequences * job->h.kv_heads);
}
