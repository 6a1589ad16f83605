/* Causal attention of new tokens over their sequence's KV slots, for prefill and decode alike.
 *
 * A task is a few query tokens of one sequence and the query heads of one key-value head. Keys are taken in blocks of
 * 64 that begin at multiples of 64 of the position, with a running maximum and sum (online softmax). Which blocks a
 * query takes, and the order inside a block, follow from its position alone: chunking cannot change a bit. */
#include <math.h>

#include "vector.h"

#define BLOCK 64
#define MAX_ROWS 32

typedef uint32_t v8 __attribute__((vector_size(32)));

struct scratch {
    float keys[MAX_HEAD_DIM * BLOCK];    /* [head_dim][BLOCK] */
    float values[BLOCK * MAX_HEAD_DIM];  /* [BLOCK][head_dim] */
    float q[MAX_ROWS * MAX_HEAD_DIM];    /* [rows][head_dim], scaled */
    float out[MAX_ROWS * MAX_HEAD_DIM];  /* [rows][head_dim] */
    float scores[MAX_ROWS * BLOCK];      /* [rows][BLOCK] */
    float max[MAX_ROWS], sum[MAX_ROWS];
    long first[MAX_ROWS], end[MAX_ROWS]; /* positions of the keys that a row sees */
} __attribute__((aligned(64)));

/* Transposes 8 x 8 words: row i of `in` becomes column i. */
INLINE void transpose8(v8 r[8]) {
    v8 a[8], b[8];
    for (int i = 0; i < 8; i += 2) {
        a[i] = __builtin_shuffle(r[i], r[i + 1], (v8){0, 8, 1, 9, 4, 12, 5, 13});
        a[i + 1] = __builtin_shuffle(r[i], r[i + 1], (v8){2, 10, 3, 11, 6, 14, 7, 15});
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            b[i + 2 * j] = __builtin_shuffle(a[i + j], a[i + 2 + j], (v8){0, 1, 8, 9, 4, 5, 12, 13});
            b[i + 2 * j + 1] = __builtin_shuffle(a[i + j], a[i + 2 + j], (v8){2, 3, 10, 11, 6, 7, 14, 15});
        }
    for (int i = 0; i < 4; i++) {
        r[i] = __builtin_shuffle(b[i], b[i + 4], (v8){0, 1, 2, 3, 8, 9, 10, 11});
        r[i + 4] = __builtin_shuffle(b[i], b[i + 4], (v8){4, 5, 6, 7, 12, 13, 14, 15});
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
        for (int w = 0; w < wide; w++) acc[r][w] = load_float(s->out + (row + r) * head_dim + d + w * LANES);
    for (long k = 0; k < keys; k++) {
        vf v[2];
        for (int w = 0; w < wide; w++) v[w] = load_float(s->values + k * head_dim + d + w * LANES);
        for (int r = 0; r < rows; r++)
            for (int w = 0; w < wide; w++) acc[r][w] += s->scores[(row + r) * BLOCK + k] * v[w];
    }
    for (int r = 0; r < rows; r++)
        for (int w = 0; w < wide; w++) memcpy(s->out + (row + r) * head_dim + d + w * LANES, &acc[r][w], sizeof(vf));
}

/* Turns a row's scores into weights, rescales what it has gathered. Hidden keys get weight 0. */
INLINE void softmax_row(struct scratch *s, long head_dim, long row, long block, long keys) {
    float *scores = s->scores + row * BLOCK;
    long from = s->first[row] - block, to = s->end[row] - block;
    if (from >= keys || to <= 0) { /* the row sees nothing of this block: weights of 0 leave it as it is */
        memset(scores, 0, BLOCK * sizeof *scores);
        return;
    }
    for (long k = 0; k < from; k++) scores[k] = -INFINITY;
    for (long k = to > 0 ? to : 0; k < BLOCK; k++) scores[k] = -INFINITY;
    vf top = load_float(scores);
    for (int i = LANES; i < BLOCK; i += LANES) {
        vf v = load_float(scores + i);
        top = select_vf(v > top, v, top);
    }
    float max = s->max[row];
    for (int i = 0; i < LANES; i++) max = top[i] > max ? top[i] : max;
    vf total = {0};
    for (int i = 0; i < BLOCK; i += LANES) {
        vf weight = exp_vf(load_float(scores + i) - max);
        memcpy(scores + i, &weight, sizeof weight);
        total += weight;
    }
    float shrink = exp_vf(splat(s->max[row] - max))[0];
    s->sum[row] = s->sum[row] * shrink + sum_lanes(total);
    s->max[row] = max;
    for (long d = 0; d < head_dim; d += LANES) {
        vf v = load_float(s->out + row * head_dim + d) * shrink;
        memcpy(s->out + row * head_dim + d, &v, sizeof v);
    }
}

INLINE void score_block(struct scratch *s, long head_dim, long rows, long keys) {
    for (long column = 0; column < keys; column += 2 * LANES) {
        long r = 0;
        for (; r + 4 <= rows; r += 4) score_rows(s, head_dim, r, 4, column, s->scores);
        if (rows - r == 3) score_rows(s, head_dim, r, 3, column, s->scores);
        if (rows - r == 2) score_rows(s, head_dim, r, 2, column, s->scores);
        if (rows - r == 1) score_rows(s, head_dim, r, 1, column, s->scores);
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
    struct scratch scratch, *s = &scratch;
    const struct heads *h = &job->h;
    long hd = h->head_dim, group = h->heads / h->kv_heads, rows = count * group;
    long context = job->context[seq], new_tokens = job->seq_start[seq + 1] - job->seq_start[seq];
    const int32_t *slots = job->slot_table + job->rows[seq] * job->table_width;
    long token = job->seq_start[seq] + query, base = context - new_tokens + query;
    for (long r = 0; r < rows; r++) {
        long at = (token + r / group) * h->heads * hd + (kv_head * group + r % group) * hd;
        for (long d = 0; d < hd; d += LANES) {
            store(s->q, r * hd + d, load(job->q, at + d, type) * job->scale, FLOAT32);
            store(s->out, r * hd + d, (vf){0}, FLOAT32);
        }
        s->max[r] = -INFINITY;
        s->sum[r] = 0;
        s->end[r] = base + r / group + 1;
        s->first[r] = job->window && s->end[r] > job->window ? s->end[r] - job->window : 0;
    }
    long last = base + count, earliest = job->window && base + 1 > job->window ? base + 1 - job->window : 0;
    for (long block = earliest / BLOCK * BLOCK; block < last; block += BLOCK) {
        long keys = last - block < BLOCK ? last - block : BLOCK, padded = (keys + 31) / 32 * 32;
        for (long k = 0; k < padded; k += 8) {
            long at[8];
            for (int i = 0; i < 8; i++) at[i] = k + i < keys ? (slots[block + k + i] * h->kv_heads + kv_head) * hd : -1;
            stage_keys(job, s->keys, at, k, type);
            for (int i = 0; i < 8; i++) stage_value(job, s->values + (k + i) * hd, at[i], type);
        }
        score_block(s, hd, rows, padded);
        for (long r = 0; r < rows; r++) softmax_row(s, hd, r, block, keys);
        mix_block(s, hd, rows, keys);
    }
    for (long r = 0; r < rows; r++) {
        long at = (token + r / group) * h->heads * hd + (kv_head * group + r % group) * hd;
        float inverse = 1.0f / s->sum[r];
        for (long d = 0; d < hd; d += LANES) store(job->out, at + d, load_float(s->out + r * hd + d) * inverse, type);
    }
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
    if (job->type == BFLOAT16)
        attend_bf16(job, seq, query, count, kv_head);
    else
        attend_float(job, seq, query, count, kv_head);
}

void attention_run(const struct attention *job) {
    struct tiling t = {job, MAX_ROWS / (job->h.heads / job->h.kv_heads), 0};
    t.tiles = (job->max_query + t.queries - 1) / t.queries;
    parallel_for(attention_task, &t, t.tiles * job->sequences * job->h.kv_heads);
}
