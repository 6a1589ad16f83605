/* Products with float32 and bfloat16 weights, and the mixture of experts that is made of them. */
#include "check.h"

#define LAST(array) (sizeof array / sizeof *array)

static const long row_counts[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 33};

struct plain {
    long n, k;
    void *x, *packed;
    float *bias, *out;
    enum dtype type, out_type;
};

static void *run(const struct plain *p, long row, long m) {
    void *out = make(m * p->n, size_of(p->out_type));
    struct gemm g = {(char *)p->x + row * p->k * size_of(p->type), p->packed, p->bias, out, m, p->n, p->k, p->type,
                     p->out_type};
    CHECK(gemm_run(&g) == 0, "gemm_run");
    return out;
}

/* The sum of float32 products errs by at most a unit for each addition. */
static void check_values(const struct plain *p, const void *weight, const void *out, long m) {
    for (long r = 0; r < m; r++)
        for (long c = 0; c < p->n; c++) {
            double sum = p->bias ? p->bias[c] : 0, size = fabs(sum);
            for (long i = 0; i < p->k; i++) {
                double product = get(p->x, r * p->k + i, p->type) * get(weight, c * p->k + i, p->type);
                sum += product;
                size += fabs(product);
            }
            double error = fabs(get(out, r * p->n + c, p->out_type) - sum);
            double most = size * (p->k + 4) * 0x1p-23 + (p->out_type == BFLOAT16 ? fabs(sum) * 0x1.01p-8 : 0);
            CHECK(error <= most, "type %d m %ld n %ld k %ld [%ld, %ld]: %g from %g", p->type, m, p->n, p->k, r, c,
                  error, sum);
        }
}

static void check_gemm(long n, long k, long m, enum dtype type, enum dtype out_type, int with_bias) {
    void *weight = random_values(n * k, type, 1);
    struct plain p = {
        n, k, random_values(m * k, type, 1), make(packed_bytes(n, k, type) / 16, 16), NULL, NULL, type, out_type};
    if (with_bias) p.bias = random_values(n, FLOAT32, 1);
    pack_weight(weight, p.packed, n, k, type);
    void *whole = run(&p, 0, m);
    check_values(&p, weight, whole, m);
    long line = n * size_of(out_type);
    for (unsigned i = 0; i < LAST(row_counts) && row_counts[i] < m; i++) {
        long row = below(m - row_counts[i] + 1);
        void *some = run(&p, row, row_counts[i]);
        int same = memcmp(some, (char *)whole + row * line, row_counts[i] * line) == 0;
        CHECK(same, "type %d n %ld k %ld: %ld rows differ among others", type, n, k, row_counts[i]);
    }
    set_threads(3);
    CHECK(memcmp(run(&p, 0, m), whole, m * line) == 0, "threads change products");
    set_threads(1);
    free_all();
}

static void check_widen(void) {
    const long k = 37, padded = 64;
    uint16_t *from = random_values(3 * k, BFLOAT16, 1);
    float *to = make(3 * padded, 4);
    kernels->widen(from, to, 3, k, padded);
    for (long i = 0; i < 3 * padded; i++)
        CHECK(to[i] == (i % padded < k ? get(from, i / padded * k + i % padded, BFLOAT16) : 0), "widen: [%ld]", i);
    free_all();
}

#define EXPERTS 4
#define CHOSEN 2

static void check_route(void) {
    const long m = 5, experts = 37;
    float *logits = random_values(m * experts, FLOAT32, 3), *weights = make(m * CHOSEN, 4);
    int32_t *numbers = make(m * CHOSEN, 4);
    struct route job = {logits, NULL, weights, numbers, m, experts, CHOSEN, 1, 1, 1, 0, 0, 1.5f};
    route_run(&job);
    for (long r = 0; r < m; r++) {
        double total = 0;
        for (long e = 0; e < experts; e++) total += exp(logits[r * experts + e]);
        for (long i = 0; i < CHOSEN; i++) {
            double logit = logits[r * experts + numbers[r * CHOSEN + i]], expected = 1.5 * exp(logit) / total;
            long larger = 0;
            for (long e = 0; e < experts; e++) larger += logits[r * experts + e] > logit;
            CHECK(larger == i, "route: choice %ld has %ld before it", i, larger);
            CHECK(fabs(weights[r * CHOSEN + i] - expected) < 1e-5 * expected, "route: weight of choice %ld", i);
        }
    }
    free_all();
}

/* Of 4 groups of 9, only the one with the two best corrected scores takes part. */
static void check_sigmoid_route(void) {
    const long m = 5, experts = 36, groups = 4, each = experts / groups;
    float *logits = random_values(m * experts, FLOAT32, 3), *correction = random_values(experts, FLOAT32, 1);
    float *weights = make(m * CHOSEN, 4);
    int32_t *numbers = make(m * CHOSEN, 4);
    struct route job = {logits, correction, weights, numbers, m, experts, CHOSEN, groups, 1, 2, 1, 1, 2.5f};
    route_run(&job);
    for (long r = 0; r < m; r++) {
        double total = 0, top = -1e9, sum = 0;
        for (long i = 0; i < CHOSEN; i++) {
            long e = numbers[r * CHOSEN + i];
            total += 1 / (1 + exp(-logits[r * experts + e]));
            sum += 1 / (1 + exp(-logits[r * experts + e])) + correction[e];
        }
        for (long a = 0; a < experts; a++)
            for (long b = 0; b < a; b++) {
                double pair = 1 / (1 + exp(-logits[r * experts + a])) + 1 / (1 + exp(-logits[r * experts + b]));
                pair += correction[a] + correction[b];
                if (a / each == b / each && pair > top) top = pair;
            }
        CHECK(fabs(sum - top) < 1e-5, "route: the best pair of a group sums to %g, not %g", top, sum);
        for (long i = 0; i < CHOSEN; i++) {
            double expected = 2.5 / (1 + exp(-logits[r * experts + numbers[r * CHOSEN + i]])) / total;
            CHECK(fabs(weights[r * CHOSEN + i] - expected) < 1e-5, "route: weight of corrected choice %ld", i);
        }
    }
    free_all();
}

/* out [n] += scale * (weight [n, k] @ x [k]) */
static void add_product(double *out, const void *weight, long from, const double *x, long n, long k, double scale,
                        enum dtype type) {
    for (long c = 0; c < n; c++)
        for (long i = 0; i < k; i++) out[c] += scale * get(weight, from + c * k + i, type) * x[i];
}

static void check_experts(enum dtype type) {
    const long m = 9, k = 48, n = 40, up_bytes = packed_bytes(2 * n, k, type), down_bytes = packed_bytes(k, n, type);
    void *x = random_values(m * k, type, 1), *out = make(m * k, size_of(type));
    void *up = random_values(EXPERTS * 2 * n * k, type, 0.3f), *down = random_values(EXPERTS * k * n, type, 0.3f);
    char *up_packed = make(EXPERTS * up_bytes / 16, 16), *down_packed = make(EXPERTS * down_bytes / 16, 16);
    float *weights = random_values(m * CHOSEN, FLOAT32, 1);
    float *up_bias = random_values(EXPERTS * 2 * n, FLOAT32, 1), *down_bias = random_values(EXPERTS * k, FLOAT32, 1);
    int32_t *numbers = make(m * CHOSEN, 4);
    for (long e = 0; e < EXPERTS; e++) {
        pack_weight((char *)up + e * 2 * n * k * size_of(type), up_packed + e * up_bytes, 2 * n, k, type);
        pack_weight((char *)down + e * k * n * size_of(type), down_packed + e * down_bytes, k, n, type);
    }
    for (long i = 0; i < m * CHOSEN; i++)
        numbers[i] = i % CHOSEN ? (numbers[i - 1] + 1) % EXPERTS : (int32_t)below(EXPERTS);
    struct experts job = {x,   up_packed, down_packed, up_bias, down_bias, 0,      0,    weights, numbers,
                          out, m,         k,           n,       EXPERTS,   CHOSEN, SILU, type};
    CHECK(experts_run(&job) == 0, "experts_run");
    double error = 0, size = 0;
    for (long r = 0; r < m; r++) {
        double row[64], expected[64] = {0};
        for (long i = 0; i < k; i++) row[i] = get(x, r * k + i, type);
        for (long a = r * CHOSEN; a < (r + 1) * CHOSEN; a++) {
            double wide[128], hidden[64];
            for (long i = 0; i < 2 * n; i++) wide[i] = up_bias[numbers[a] * 2 * n + i];
            for (long i = 0; i < k; i++) expected[i] += weights[a] * down_bias[numbers[a] * k + i];
            add_product(wide, up, numbers[a] * 2 * n * k, row, 2 * n, k, 1, type);
            for (long i = 0; i < n; i++) hidden[i] = wide[i] / (1 + exp(-wide[i])) * wide[n + i];
            add_product(expected, down, numbers[a] * k * n, hidden, k, n, weights[a], type);
        }
        for (long i = 0; i < k; i++) {
            error += pow(get(out, r * k + i, type) - expected[i], 2);
            size += pow(expected[i], 2);
        }
    }
    CHECK(sqrt(error / size) < (type == BFLOAT16 ? 0.01 : 1e-5), "experts: error %g", sqrt(error / size));
    free_all();
}

void check_products(void) {
    static const long widths[] = {1, 31, 32, 45, 64}, depths[] = {1, 2, 31, 32, 33, 100, 129, 260};
    for (int type = FLOAT32; type <= BFLOAT16; type++) {
        for (unsigned n = 0; n < LAST(widths); n++)
            for (unsigned k = 0; k < LAST(depths); k++)
                check_gemm(widths[n], depths[k], 14, type, (n + k) % 2 ? FLOAT32 : type, k % 3 == 0);
        check_gemm(70, 300, 150, type, type, 1);
        check_experts(type);
    }
    check_widen();
    check_route();
    check_sigmoid_route();
}
