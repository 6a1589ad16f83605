/* Attention over keys and values of every type, against sums over all keys. */
#include "check.h"

#define SEQUENCES 3
#define SLOTS 220
#define TABLE_WIDTH 160

static const long contexts[SEQUENCES] = {150, 64, 7}, new_tokens[SEQUENCES] = {40, 1, 7};

struct variant {
    long window;
    float softcap;
    int with_alibi, with_sinks;
};

/* A pool as plain numbers. */
static double *plain(const void *pool, const uint16_t *scales, const struct heads *h, enum dtype type) {
    long count = SLOTS * h->kv_heads * h->head_dim;
    double *to = make(count, 8);
    for (long i = 0; i < count; i++) {
        if (type == INT8)
            to[i] = ((const int8_t *)pool)[i] * half_value(scales[i / h->head_dim]);
        else if (type == FLOAT8)
            to[i] = e4m3_value(((const uint8_t *)pool)[i]) * half_value(scales[i / h->head_dim]);
        else
            to[i] = get(pool, i, type);
    }
    return to;
}

static void *random_pool(const struct heads *h, enum dtype type) {
    long count = SLOTS * h->kv_heads * h->head_dim;
    if (type < INT8) return random_values(count, type, 1);
    uint8_t *p = make(count, 1);
    for (long i = 0; i < count; i++) p[i] = (uint8_t)(below(256));
    for (long i = 0; i < count; i++) /* e4m3 has no number at 0x7f */
        if ((p[i] & 0x7f) == 0x7f) p[i] ^= 1;
    return p;
}

static uint16_t *random_scales(const struct heads *h, enum dtype type) {
    uint16_t *p = make(SLOTS * h->kv_heads, 2), least = type == FLOAT8 ? 0x1800 : 0x2000; /* 2^-9, 2^-7 */
    for (long i = 0; i < SLOTS * h->kv_heads; i++) p[i] = (uint16_t)(least + below(0x400));
    return p;
}

/* One head of one query token at `position`, which keys [0, position] precede. */
static void expect(const struct attention *a, const double *keys, const double *values, long seq, long token, long head,
                   long position, double *out) {
    long d = a->h.head_dim, kv_head = head / (a->h.heads / a->h.kv_heads);
    const int32_t *slots = a->slot_table + a->rows[seq] * a->table_width;
    long first = a->window && position + 1 > a->window ? position + 1 - a->window : 0;
    double q[MAX_HEAD_DIM], scores[TABLE_WIDTH], top = -INFINITY, total = 0;
    for (long i = 0; i < d; i++) q[i] = get(a->q, (token * a->h.heads + head) * d + i, a->type) * a->scale;
    for (long k = first; k <= position; k++) {
        const double *key = keys + (slots[k] * a->h.kv_heads + kv_head) * d;
        double score = 0;
        for (long i = 0; i < d; i++) score += q[i] * key[i];
        if (a->softcap) score = a->softcap * tanh(score / a->softcap);
        if (a->alibi) score += a->alibi[head] * (double)(k - position);
        scores[k] = score;
        top = fmax(top, score);
    }
    for (long i = 0; i < d; i++) out[i] = 0;
    if (a->sinks) total = exp(a->sinks[head] - top);
    for (long k = first; k <= position; k++) {
        double weight = exp(scores[k] - top);
        total += weight;
        const double *value = values + (slots[k] * a->h.kv_heads + kv_head) * d;
        for (long i = 0; i < d; i++) out[i] += weight * value[i];
    }
    for (long i = 0; i < d; i++) out[i] /= total;
}

static void check_values(const struct attention *a) {
    long d = a->h.head_dim;
    const double *keys = plain(a->keys, a->key_scales, &a->h, a->kv_type);
    const double *values = plain(a->values, a->value_scales, &a->h, a->kv_type);
    for (long seq = 0; seq < SEQUENCES; seq++)
        for (long t = 0; t < new_tokens[seq]; t += t % 5 + 1)
            for (long head = 0; head < a->h.heads; head++) {
                double expected[MAX_HEAD_DIM];
                long token = a->seq_start[seq] + t;
                expect(a, keys, values, seq, token, head, contexts[seq] - new_tokens[seq] + t, expected);
                for (long i = 0; i < d; i++) {
                    double got = get(a->out, (token * a->h.heads + head) * d + i, a->type);
                    int all_narrow = a->type == BFLOAT16 && a->kv_type == BFLOAT16; /* AMX rounds the weights, too */
                    double most = rounding(expected[i], a->type) + (all_narrow ? 2e-3 : 2e-5);
                    CHECK(fabs(got - expected[i]) <= most, "attention kv %d d %ld: %ld, token %ld, head %ld: %g not %g",
                          a->kv_type, d, seq, t, head, got, expected[i]);
                }
            }
}

/* The first sequence's new tokens in two parts give the same bits. */
static void check_parts(const struct attention *whole) {
    set_threads(3); /* one token's segments are shared among them */
    long line = whole->h.heads * whole->h.head_dim * size_of(whole->type);
    for (long cut = 1; cut < new_tokens[0]; cut += 13) {
        char *out = make(new_tokens[0] * line / size_of(whole->type), size_of(whole->type));
        int32_t *context = make(1, 4), *start = make(2, 4);
        struct attention part = *whole;
        part.context = context;
        part.seq_start = start;
        part.sequences = 1;
        for (int i = 0; i < 2; i++) {
            part.q = (const char *)whole->q + i * cut * line;
            part.out = out + i * cut * line;
            start[0] = 0;
            start[1] = part.max_query = i ? new_tokens[0] - cut : cut;
            context[0] = contexts[0] - (i ? 0 : new_tokens[0] - cut);
            attention_run(&part);
        }
        CHECK(memcmp(out, whole->out, new_tokens[0] * line) == 0, "attention kv %d: cut at %ld", whole->kv_type, cut);
    }
    set_threads(1);
}

static void check_one(struct heads h, enum dtype type, enum dtype kv_type, struct variant v) {
    long tokens = 0;
    int32_t *start = make(SEQUENCES + 1, 4), *context = make(SEQUENCES, 4), *rows = make(SEQUENCES, 4);
    int32_t *table = make(SEQUENCES * TABLE_WIDTH, 4);
    for (long seq = 0; seq < SEQUENCES; seq++) {
        start[seq] = (int32_t)tokens;
        tokens += new_tokens[seq];
        context[seq] = (int32_t)contexts[seq];
        rows[seq] = SEQUENCES - 1 - (int32_t)seq;
        for (long i = 0; i < TABLE_WIDTH; i++) table[seq * TABLE_WIDTH + i] = (int32_t)below(SLOTS);
    }
    start[SEQUENCES] = (int32_t)tokens;
    struct attention job = {
        random_values(tokens * h.heads * h.head_dim, type, 2), random_pool(&h, kv_type), random_pool(&h, kv_type),
        make(tokens * h.heads * h.head_dim, size_of(type)), start, context, rows, table,
        v.with_alibi ? random_values(h.heads, FLOAT32, 0.2f) : NULL, SEQUENCES, TABLE_WIDTH, new_tokens[0], v.window,
        1 / sqrtf((float)h.head_dim), v.softcap, h, type, kv_type,
        random_scales(&h, kv_type), random_scales(&h, kv_type), h.heads * h.head_dim, h.kv_heads * h.head_dim, 0,
        v.with_sinks ? random_values(h.heads, FLOAT32, 3) : NULL};
    attention_run(&job);
    check_values(&job);
    check_parts(&job);
    free_all();
}

/* A key-value head that all heads share gives the same bits as one copy of it for each task; values are the first 32
 * components of its keys. */
static void check_shared(enum dtype type) {
    const struct heads h = {34, 2, 48};
    const long value_dim = 32, slots = 90, new = 20, context_length = 70, size = size_of(type), line = h.head_dim * size;
    char *once = random_values(slots * h.head_dim, type, 1), *twice = make(slots * 2 * h.head_dim, size);
    for (long i = 0; i < 2 * slots; i++) memcpy(twice + i * line, once + i / 2 * line, line);
    int32_t *start = make(2, 4), *context = make(1, 4), *rows = make(1, 4), *table = make(context_length, 4);
    start[0] = rows[0] = 0;
    start[1] = new;
    context[0] = context_length;
    for (long i = 0; i < context_length; i++) table[i] = (int32_t)below(slots);
    struct attention job = {.q = random_values(new * h.heads * h.head_dim, type, 2),
                            .keys = twice,
                            .values = twice,
                            .out = make(new * h.heads * h.head_dim, size),
                            .seq_start = start,
                            .context = context,
                            .rows = rows,
                            .slot_table = table,
                            .sequences = 1,
                            .table_width = context_length,
                            .max_query = new,
                            .scale = 0.2f,
                            .h = h,
                            .type = type,
                            .kv_type = type,
                            .q_line = h.heads * h.head_dim,
                            .kv_line = 2 * h.head_dim};
    struct attention shared = job;
    shared.keys = shared.values = once;
    shared.kv_line = h.head_dim;
    shared.shared = 1;
    shared.value_dim = value_dim;
    shared.out = make(new * h.heads * value_dim, size);
    attention_run(&job);
    attention_run(&shared);
    for (long i = 0; i < new * h.heads; i++)
        CHECK(memcmp((char *)shared.out + i * value_dim * size, (char *)job.out + i * line, value_dim * size) == 0,
              "shared keys: head %ld of token %ld", i % h.heads, i / h.heads);
    free_all();
}

void check_attention(void) {
    for (int type = FLOAT32; type <= BFLOAT16; type++) check_shared(type);
    static const struct variant variants[] = {{0, 0, 0, 0}, {50, 0, 0, 1}, {0, 5, 1, 0}, {9, 0, 1, 0}};
    for (int type = FLOAT32; type <= BFLOAT16; type++)
        for (int kv = 0; kv < 3; kv++) {
            enum dtype kv_type = kv == 0 ? type : kv == 1 ? INT8 : FLOAT8;
            for (int i = 0; i < 4; i++) check_one((struct heads){4, 2, 16}, type, kv_type, variants[i]);
            check_one((struct heads){6, 1, 80}, type, kv_type, variants[0]);
            check_one((struct heads){2, 2, 128}, type, kv_type, variants[1]);
        }
}
