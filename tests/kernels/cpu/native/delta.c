/* The gated delta rule, against the same formulas in double precision, and in parts. */
#include "check.h"

#define SEQUENCES 3
#define PLACES 6 /* rows 0 to 2, and three for states that are kept */

static const long new_tokens[SEQUENCES] = {37, 1, 2};

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }
static double silu(double x) { return x * sigmoid(x); }
static long channels_of(const struct delta *d) { return 2 * d->key_heads * d->key_dim + d->value_heads * d->value_dim; }

/* Input of the convolution of a sequence's token `t`, which may lie before the new ones. */
static double input(const struct delta *d, const void *before, long seq, long t, long channel) {
    long channels = channels_of(d), kept = d->taps - 1;
    if (t < 0) return get(before, (d->rows[seq] * kept + kept + t) * channels + channel, d->type);
    return get(d->projected, (d->seq_start[seq] + t) * (channels + d->value_heads * d->value_dim) + channel, d->type);
}

static double convolved(const struct delta *d, const void *before, long seq, long t, long channel) {
    double sum = 0;
    for (long tap = 0; tap < d->taps; tap++)
        sum += get(d->conv, tap * channels_of(d) + channel, d->type) *
               input(d, before, seq, t + 1 - d->taps + tap, channel);
    return silu(sum);
}

/* A query or key, divided by its length. */
static void unit(const struct delta *d, const void *before, long seq, long t, long first, double scale, double *to) {
    double squares = 1e-6;
    for (long i = 0; i < d->key_dim; i++) {
        to[i] = convolved(d, before, seq, t, first + i);
        squares += to[i] * to[i];
    }
    for (long i = 0; i < d->key_dim; i++) to[i] *= scale / sqrt(squares);
}

/* Moves the state of a value head on by one token; `out` are the results before the norm. */
static void move(const struct delta *d, const void *before, long seq, long t, long head, double *state, double *out) {
    long keys = d->key_heads * d->key_dim, key_head = head / (d->value_heads / d->key_heads), wide = d->value_dim;
    double q[MAX_DELTA_DIM], k[MAX_DELTA_DIM];
    unit(d, before, seq, t, key_head * d->key_dim, 1 / sqrt((double)d->key_dim), q);
    unit(d, before, seq, t, keys + key_head * d->key_dim, 1, k);
    const float *ba = d->ba + (d->seq_start[seq] + t) * 2 * d->value_heads;
    double decay = exp(-d->decay[head] * log1p(exp((double)ba[d->value_heads + head] + d->dt_bias[head])));
    for (long j = 0; j < wide; j++) {
        double seen = 0, v = convolved(d, before, seq, t, 2 * keys + head * wide + j);
        for (long i = 0; i < d->key_dim; i++) seen += (state[i * wide + j] *= decay) * k[i];
        out[j] = 0;
        for (long i = 0; i < d->key_dim; i++) {
            state[i * wide + j] += k[i] * sigmoid(ba[head]) * (v - seen);
            out[j] += state[i * wide + j] * q[i];
        }
    }
}

static void check_token(const struct delta *d, long seq, long t, long head, const double *out) {
    long wide = d->value_dim, token = d->seq_start[seq] + t, values = d->value_heads * wide;
    double squares = 0;
    for (long j = 0; j < wide; j++) squares += out[j] * out[j] / wide;
    for (long j = 0; j < wide; j++) {
        double gate = get(d->projected, token * (channels_of(d) + values) + channels_of(d) + head * wide + j, d->type);
        double expected = out[j] / sqrt(squares + d->eps) * d->norm[j] * silu(gate);
        double got = get(d->out, token * values + head * wide + j, d->type);
        CHECK(fabs(got - expected) <= rounding(expected, d->type) + 2e-4, "delta: %ld, token %ld, head %ld: %g not %g",
              seq, t, head, got, expected);
    }
}

static void check_state(const struct delta *d, const double *state, long place, long head) {
    long size = d->key_dim * d->value_dim;
    const float *got = d->recurrent + (place * d->value_heads + head) * size;
    for (long i = 0; i < size; i++)
        CHECK(fabs(got[i] - state[i]) <= 1e-4, "delta: place %ld, head %ld: %g not %g", place, head, got[i], state[i]);
}

static void check_values(const struct delta *d, const float *states, const void *before) {
    long size = d->key_dim * d->value_dim;
    for (long seq = 0; seq < d->sequences; seq++)
        for (long head = 0; head < d->value_heads; head++) {
            double *state = make(size, 8), out[MAX_DELTA_DIM];
            for (long i = 0; i < size; i++) state[i] = states[(d->rows[seq] * d->value_heads + head) * size + i];
            for (long t = 0; t < new_tokens[seq]; t++) {
                move(d, before, seq, t, head, state, out);
                check_token(d, seq, t, head, out);
                for (long i = 0; i < d->save_count; i++)
                    if (d->saves[3 * i] == seq && d->saves[3 * i + 1] == t + 1)
                        check_state(d, state, d->saves[3 * i + 2], head);
            }
            check_state(d, state, d->rows[seq], head);
        }
}

static void check_inputs(const struct delta *d, const void *before, long seq, long tokens, long place) {
    long kept = d->taps - 1, channels = channels_of(d);
    for (long i = 0; i < kept * channels; i++)
        CHECK(get(d->inputs, place * kept * channels + i, d->type) ==
                  input(d, before, seq, tokens - kept + i / channels, i % channels),
              "delta: input %ld of place %ld", i, place);
}

/* The first sequence's tokens in two parts give the same bits. */
static void check_parts(const struct delta *whole, const float *states, const void *before) {
    long size = size_of(whole->type), values = whole->value_heads * whole->value_dim;
    long state_bytes = PLACES * values * whole->key_dim * 4, width = channels_of(whole) + values;
    long input_count = PLACES * (whole->taps - 1) * channels_of(whole);
    for (long cut = 1; cut < new_tokens[0]; cut += 11) {
        struct delta part = *whole;
        char *out = make(new_tokens[0] * values, size);
        int32_t *start = make(2, 4);
        part.recurrent = memcpy(make(state_bytes, 1), states, state_bytes);
        part.inputs = memcpy(make(input_count, size), before, input_count * size);
        part.seq_start = start;
        part.sequences = 1;
        part.save_count = 0;
        for (int i = 0; i < 2; i++) {
            start[0] = 0;
            start[1] = (int32_t)(i ? new_tokens[0] - cut : cut);
            part.projected = (const char *)whole->projected + i * cut * width * size;
            part.ba = whole->ba + i * cut * 2 * whole->value_heads;
            part.out = out + i * cut * values * size;
            delta_run(&part);
        }
        CHECK(memcmp(out, whole->out, new_tokens[0] * values * size) == 0, "delta: cut at %ld", cut);
        long first = whole->rows[0] * values * whole->key_dim;
        CHECK(memcmp(part.recurrent + first, whole->recurrent + first, values * whole->key_dim * 4) == 0,
              "delta: state, cut at %ld", cut);
    }
}

static void check_one(long key_heads, long value_heads, long key_dim, long value_dim, enum dtype type) {
    int32_t *start = make(SEQUENCES + 1, 4), *rows = make(SEQUENCES, 4), *saves = make(9, 4);
    static const int32_t kept[9] = {0, 1, 3, 0, 33, 4, 2, 2, 5};
    memcpy(saves, kept, sizeof kept);
    long tokens = 0;
    for (long seq = 0; seq < SEQUENCES; seq++) {
        start[seq] = (int32_t)tokens;
        rows[seq] = SEQUENCES - 1 - (int32_t)seq;
        tokens += new_tokens[seq];
    }
    start[SEQUENCES] = (int32_t)tokens;
    long values = value_heads * value_dim, channels = 2 * key_heads * key_dim + values, taps = 4;
    long input_count = PLACES * (taps - 1) * channels, state_count = PLACES * values * key_dim;
    float *decay = random_values(value_heads, FLOAT32, 0.5f);
    for (long i = 0; i < value_heads; i++) decay[i] += 0.6f;
    struct delta job = {random_values(tokens * (channels + values), type, 2),
                        random_values(tokens * 2 * value_heads, FLOAT32, 3),
                        random_values(taps * channels, type, 0.7f),
                        decay,
                        random_values(value_heads, FLOAT32, 1),
                        random_values(value_dim, FLOAT32, 1),
                        random_values(state_count, FLOAT32, 0.5f),
                        random_values(input_count, type, 2),
                        make(tokens * values, size_of(type)),
                        start, rows, saves, SEQUENCES, 3, key_heads, value_heads, key_dim, value_dim, taps, 1e-6f, type};
    const float *states = memcpy(make(state_count, 4), job.recurrent, state_count * 4);
    const void *before = memcpy(make(input_count, size_of(type)), job.inputs, input_count * size_of(type));
    delta_run(&job);
    check_values(&job, states, before);
    for (long seq = 0; seq < SEQUENCES; seq++) check_inputs(&job, before, seq, new_tokens[seq], rows[seq]);
    for (long i = 0; i < 3; i++) check_inputs(&job, before, saves[3 * i], saves[3 * i + 1], saves[3 * i + 2]);
    check_parts(&job, states, before);
    free_all();
}

void check_delta(void) {
    for (int type = FLOAT32; type <= BFLOAT16; type++) {
        check_one(2, 4, 16, 48, type);
        check_one(1, 1, 64, 32, type);
    }
}
