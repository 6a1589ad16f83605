/* Norms, activations, rotary embedding with the KV write. */
#include "check.h"

/* A norm of columns by mean squares that are given: those of the whole rows. */
static void check_given_squares(enum dtype type) {
    const long m = 5, width = 45, first = 3, n = 37;
    void *x = random_values(m * width, type, 1), *weight = random_values(n, FLOAT32, 1);
    void *part = make(m * n, size_of(type)), *out = make(m * n, size_of(type));
    float *sums = make(m, 4);
    struct squares squares = {x, sums, m, width, first, n, type};
    squares_run(&squares);
    for (long r = 0; r < m; r++) {
        double expected = 0;
        for (long i = 0; i < n; i++) expected += pow(get(x, r * width + first + i, type), 2);
        CHECK(fabs(sums[r] - expected) <= 1e-5 * expected, "squares: row %ld is %g from %g", r, sums[r], expected);
        memcpy((char *)part + r * n * size_of(type), (char *)x + (r * width + first) * size_of(type), n * size_of(type));
        sums[r] /= 7;
    }
    struct norm job = {NULL, part, weight, NULL, sums, out, m, n, 1, 1e-5f, 0, type, FLOAT32};
    norm_run(&job);
    for (long i = 0; i < m * n; i++) {
        double expected = get(part, i, type) / sqrt(sums[i / n] + 1e-5) * get(weight, i % n, FLOAT32);
        double got = get(out, i, type);
        CHECK(fabs(got - expected) <= rounding(expected, type) + 1e-5 * fabs(expected), "norm by given squares [%ld]", i);
    }
    free_all();
}

static void check_norm(long n, enum dtype type, enum dtype weight_type, int centred, int with_x, int with_bias) {
    const long m = 5, lines = 2;
    void *x = random_values(m * n, type, 1), *residual = random_values(m * n, type, 1);
    void *out = make(m * n, size_of(type));
    void *weight = random_values(lines * n, weight_type, 1), *bias = random_values(lines * n, weight_type, 1);
    double *sum = make(m * n, 8);
    for (long i = 0; i < m * n; i++) sum[i] = get(residual, i, type) + (with_x ? get(x, i, type) : 0);
    struct norm job = {
        with_x ? x : NULL, residual, weight, with_bias ? bias : NULL, NULL, out,
        m, n, lines, 1e-5f, centred, type, weight_type};
    norm_run(&job);
    for (long r = 0; r < m; r++) {
        double mean = 0, spread = 0;
        for (long i = 0; i < n; i++) {
            double kept = get(residual, r * n + i, type);
            CHECK(fabs(kept - sum[r * n + i]) <= rounding(sum[r * n + i], type), "norm: sum [%ld, %ld]", r, i);
            if (centred) mean += kept / n;
        }
        for (long i = 0; i < n; i++) spread += pow(get(residual, r * n + i, type) - mean, 2) / n;
        for (long i = 0; i < n; i++) {
            double unit = (get(residual, r * n + i, type) - mean) / sqrt(spread + 1e-5);
            long at = r % lines * n + i;
            double w = get(weight, at, weight_type), b = with_bias ? get(bias, at, weight_type) : 0;
            double expected = unit * w + b, got = get(out, r * n + i, type);
            /* Where a value is near the mean, or cancels the bias, the error is that of what was subtracted. */
            double most = rounding(expected, type) + 1e-5 * (fabs(w) + fabs(b)) * (centred ? 10 : 1);
            CHECK(fabs(got - expected) <= most, "norm n %ld [%ld, %ld]: %g from %g", n, r, i, got, expected);
        }
    }
    free_all();
}

static double curve_value(double x, enum curve curve) {
    switch (curve) {
        case SILU: return x / (1 + exp(-x));
        case GELU: return 0.5 * x * (1 + erf(x / sqrt(2)));
        case GELU_TANH: return 0.5 * x * (1 + tanh(sqrt(2 / acos(-1)) * (x + 0.044715 * x * x * x)));
        default: return x > 0 ? x : 0;
    }
}

static void check_activation(long n, enum dtype type, enum curve curve, int gated) {
    const long m = 3, line = gated ? 2 * n : n;
    void *x = random_values(m * line, type, 9), *out = make(m * n, size_of(type));
    struct activation job = {x, out, m, n, gated, curve, type};
    activation_run(&job);
    for (long i = 0; i < m * n; i++) {
        double in = get(x, i / n * line + i % n, type), gate = gated ? get(x, i / n * line + n + i % n, type) : 1;
        double expected = curve_value(in, curve) * gate, got = get(out, i, type);
        double most = rounding(expected, type) + 1e-6 * fabs(in * gate);
        CHECK(fabs(got - expected) <= most, "curve %d of %g times %g: %g from %g", curve, in, gate, got, expected);
    }
    free_all();
}

#define POSITIONS 20
#define SLOTS 12

struct pool { /* as the keys or the values of a cache */
    void *values;
    uint16_t *scales;
};

static struct pool new_pool(const struct heads *h, enum dtype kv_type) {
    return (struct pool){make(SLOTS * h->kv_heads * h->head_dim, size_of(kv_type)), make(SLOTS * h->kv_heads, 2)};
}

/* What a slot holds of a head, against what was written. */
static void check_stored(const struct pool *pool, long line, const double *expected, long d, enum dtype type,
                         enum dtype kv_type) {
    double largest = 0, most = kv_type == INT8 ? 127 : 448, scale = half_value(pool->scales[line]);
    for (long i = 0; i < d; i++) largest = fmax(largest, fabs(expected[i]));
    if (kv_type >= INT8)
        CHECK(fabs(scale - largest / most) <= largest / most * (0x1.1p-11 + 2 * rounding(1, type)) + 0x1p-25,
              "scale %g of %g", scale, largest);
    for (long i = 0; i < d; i++) {
        double error = rounding(expected[i], type) + 1e-6, got;
        if (kv_type == INT8) {
            got = ((int8_t *)pool->values)[line * d + i] * scale;
            error += 0.5 * scale + largest * 0x1p-10; /* the scale's own rounding may push the largest over the end */
        } else if (kv_type == FLOAT8) {
            got = e4m3_value(((uint8_t *)pool->values)[line * d + i]) * scale;
            error += fmax(fabs(expected[i]) * 0x1.01p-4, scale * 0x1p-10);
        } else {
            got = get(pool->values, line * d + i, kv_type);
        }
        CHECK(fabs(got - expected[i]) <= error, "kv type %d: [%ld] is %g, not %g", kv_type, i, got, expected[i]);
    }
}

static void rotate(const void *from, long in, double *to, const float *cos, const float *sin, long half, long d,
                   enum dtype type) {
    for (long i = 0; i < d; i++) to[i] = get(from, in + i, type);
    for (long i = 0; i < half; i++) {
        double a = to[i], b = to[half + i];
        to[i] = a * cos[i] - b * sin[i];
        to[half + i] = b * cos[i] + a * sin[i];
    }
}

static void check_rotary(struct heads h, long half, enum dtype type, enum dtype kv_type) {
    const long m = 7, d = h.head_dim, line = (h.heads + 2 * h.kv_heads) * d;
    void *qkv = random_values(m * line, type, 2), *q = make(m * h.heads * d, size_of(type));
    float *cos = random_values(POSITIONS * half, FLOAT32, 1), *sin = random_values(POSITIONS * half, FLOAT32, 1);
    int32_t *positions = make(m, 4), *slots = make(m, 4);
    struct pool keys = new_pool(&h, kv_type), values = new_pool(&h, kv_type);
    for (long r = 0; r < m; r++) {
        positions[r] = (int32_t)below(POSITIONS);
        slots[r] = (int32_t)(r * 5 % SLOTS);
    }
    struct rotary job = {qkv, q, keys.values, values.values, cos, sin, positions, slots, m, half, h, type, kv_type,
                         keys.scales, values.scales};
    rotary_run(&job);
    char written[SLOTS] = {0};
    for (long r = 0; r < m; r++) {
        const float *c = cos + positions[r] * half, *s = sin + positions[r] * half;
        double expected[MAX_HEAD_DIM];
        for (long head = 0; head < h.heads; head++) {
            rotate(qkv, r * line + head * d, expected, c, s, half, d, type);
            for (long i = 0; i < d; i++) {
                double got = get(q, (r * h.heads + head) * d + i, type);
                double error = fabs(got - expected[i]);
                CHECK(error <= rounding(expected[i], type) + 1e-6, "rotary: %g from %g", got, expected[i]);
            }
        }
        for (long head = 0; head < h.kv_heads; head++) {
            rotate(qkv, r * line + (h.heads + head) * d, expected, c, s, half, d, type);
            check_stored(&keys, slots[r] * h.kv_heads + head, expected, d, type, kv_type);
            rotate(qkv, r * line + (h.heads + h.kv_heads + head) * d, expected, c, s, 0, d, type);
            check_stored(&values, slots[r] * h.kv_heads + head, expected, d, type, kv_type);
        }
        written[slots[r]] = 1;
    }
    long bytes = h.kv_heads * d * size_of(kv_type);
    for (long slot = 0; slot < SLOTS; slot++)
        for (long i = slot * bytes; i < (slot + 1) * bytes && !written[slot]; i++) {
            uint8_t key = ((uint8_t *)keys.values)[i], value = ((uint8_t *)values.values)[i];
            CHECK(key == 0xff && value == 0xff, "slot %ld was not to be written", slot);
        }
    free_all();
}

void check_rows(void) {
    static const long widths[] = {1, 3, 4, 5, 16, 31, 64, 67, 100};
    for (unsigned i = 0; i < sizeof widths / sizeof *widths; i++)
        for (int type = FLOAT32; type <= BFLOAT16; type++) {
            for (int bits = 0; bits < 8; bits++)
                check_norm(widths[i], type, bits == 5 ? FLOAT32 : type, bits & 1, bits >> 1 & 1, bits >> 2);
            for (int curve = SILU; curve <= RELU; curve++)
                for (int gated = 0; gated < 2; gated++) check_activation(widths[i], type, curve, gated);
        }
    for (int type = FLOAT32; type <= BFLOAT16; type++) check_given_squares(type);
    for (int type = FLOAT32; type <= BFLOAT16; type++)
        for (int kv = 0; kv < 3; kv++) {
            enum dtype kv_type = kv == 0 ? type : kv == 1 ? INT8 : FLOAT8;
            check_rotary((struct heads){4, 2, 16}, 8, type, kv_type);
            check_rotary((struct heads){3, 1, 80}, 20, type, kv_type);
            check_rotary((struct heads){2, 2, 128}, 63, type, kv_type);
        }
}
