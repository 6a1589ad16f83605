/* Products with quantised weights in all formats, from random bits. */
#include "check.h"

#define TWO 2 /* parts of a weight */

/* A type of ggml's: bytes and inputs of a block, and where its float16 numbers lie (-1: there is no second, or the first
 * byte is an exponent). */
static const struct block {
    int type, bytes, inputs, at, second;
} blocks[] = {
    {2, 18, 32, 0, -1},   {3, 20, 32, 0, 2},    {6, 22, 32, 0, -1},     {7, 24, 32, 0, 2},
    {8, 34, 32, 0, -1},   {10, 84, 256, 80, 82}, {11, 110, 256, 108, -1}, {12, 144, 256, 0, 2},
    {13, 176, 256, 0, 2}, {14, 210, 256, 208, -1}, {20, 18, 32, 0, -1},   {23, 136, 256, 0, -1},
    {39, 17, 32, -1, -1},
};

/* Between 2^-7 and 2^-3 in size, of either sign. */
static uint16_t random_half(void) { return (uint16_t)(below(2) << 15 | (0x2000 + below(0x1000))); }

/* Numbers that bfloat16 holds exactly: small integers times a power of two, the largest in every block. */
static float *exact_values(long m, long k) {
    float *x = make(m * k, 4);
    for (long r = 0; r < m; r++) {
        float unit = ldexpf(1, (int)below(8) - 7);
        for (long i = 0; i < k; i++)
            x[r * k + i] = unit * (float)(i % INPUTS ? below(255) - 127 : below(2) ? 127 : -127);
    }
    return x;
}

static struct quantised new_weight(int format, long per, long n, long k) {
    return (struct quantised){(intptr_t)make(quantised_bytes(format, per, n, k) / 16, 16), 0, n, format, per};
}

/* Rows of random bits, or of one byte but for the float16 numbers. */
static struct quantised blocks_of(const struct block *b, long n, long k, int byte) {
    long row_bytes = k / b->inputs * b->bytes;
    uint8_t *rows = make(n * row_bytes, 1);
    for (long i = 0; i < n * row_bytes; i++) rows[i] = (uint8_t)(byte < 0 ? below(256) : byte);
    for (long i = 0; i < n * row_bytes; i += b->bytes) {
        uint16_t one = random_half(), two = random_half();
        if (b->at >= 0)
            memcpy(rows + i + b->at, &one, 2);
        else
            rows[i] = (uint8_t)(112 + below(12));
        if (b->second >= 0) memcpy(rows + i + b->second, &two, 2);
    }
    int format = ggml_format(b->type);
    struct quantised w = new_weight(format, formats[format].per, n, k);
    CHECK(pack_ggml(b->type, rows, row_bytes, (void *)(intptr_t)w.packed, n, k) == 0, "pack_ggml: type %d", b->type);
    return w;
}

static struct quantised random_blocks(const struct block *b, long n, long k) { return blocks_of(b, n, k, -1); }

static struct quantised random_int8(long n, long k) {
    int8_t *values = make(n * k, 1);
    for (long i = 0; i < n * k; i++) values[i] = (int8_t)(below(256) - 128);
    struct quantised w = new_weight(ROWS_INT8, (k + INPUTS - 1) / INPUTS, n, k);
    pack_int8(values, random_values(n, FLOAT32, 0.1f), (void *)(intptr_t)w.packed, n, k, w.per);
    return w;
}

static struct quantised random_groups(long n, long k, long per) {
    long groups = k / INPUTS / per;
    uint8_t *codes = make(n * k, 1), *zeros = make(n * groups, 1);
    for (long i = 0; i < n * k; i++) codes[i] = (uint8_t)below(16);
    for (long i = 0; i < n * groups; i++) zeros[i] = (uint8_t)below(16);
    struct quantised w = new_weight(GROUPS_INT4, per, n, k);
    pack_grouped(codes, random_values(n * groups, FLOAT32, 0.1f), zeros, (void *)(intptr_t)w.packed, n, k, per);
    return w;
}

static long width_of(const struct quantised *parts) { return parts[0].n + parts[1].n; }

static void *run(const struct quantised *parts, const void *x, long m, long k, enum dtype type, enum dtype out_type) {
    void *out = make(m * width_of(parts), size_of(out_type));
    CHECK(quantised_run(x, parts, TWO, out, m, k, type, out_type) == 0, "quantised_run");
    return out;
}

/* Of the block of a row that input i is in. */
static double largest_of(const float *row, long i, long k) {
    double largest = 0;
    for (long j = i / INPUTS * INPUTS; j < k && j < (i / INPUTS + 1) * INPUTS; j++) largest = fmax(largest, fabs(row[j]));
    return largest;
}

static void check_values(const struct quantised *parts, const float *x, const float *out, long m, long k) {
    long width = width_of(parts);
    int64_t *lines = make(width, 8);
    float *w = make(width * k, 4);
    for (long i = 0; i < width; i++) lines[i] = i;
    expand_rows(parts, k, lines, width, w, FLOAT32);
    for (long r = 0; r < m; r++)
        for (long c = 0; c < width; c++) {
            const float *bias = (const float *)(intptr_t)parts[c >= parts[0].n].bias;
            double sum = bias ? bias[c >= parts[0].n ? c - parts[0].n : c] : 0, size = 0, largest = 0, rounding = 0;
            for (long i = 0; i < k; i++) {
                sum += (double)x[r * k + i] * w[c * k + i];
                size += fabs(x[r * k + i]);
                largest = fmax(largest, fabs(w[c * k + i]));
                rounding += fabs(w[c * k + i]) * largest_of(x + r * k, i, k) / 32767 * 0.51;
            }
            double error = fabs(out[r * width + c] - sum);
            CHECK(error <= rounding + size * largest * 2e-6 + 1e-6, "format %d m %ld k %ld [%ld, %ld]: %g from %g",
                  (int)parts[0].format, m, k, r, c, error, sum);
        }
}

static void check_weight(struct quantised first, struct quantised second, long m, long k) {
    struct quantised *parts = make(TWO, sizeof *parts);
    parts[0] = first;
    parts[1] = second;
    parts[1].bias = (intptr_t)random_values(second.n, FLOAT32, 1);
    float *x = exact_values(m, k), *whole = run(parts, x, m, k, FLOAT32, FLOAT32);
    check_values(parts, x, whole, m, k);
    long width = width_of(parts);
    void *narrow = make(m * k, 2), *rounded = run(parts, x, m, k, FLOAT32, BFLOAT16);
    for (long i = 0; i < m * k; i++) put(narrow, i, x[i], BFLOAT16);
    float *of_narrow = run(parts, narrow, m, k, BFLOAT16, FLOAT32);
    check_values(parts, x, of_narrow, m, k);
    CHECK(memcmp(of_narrow, whole, m * width * 4) == 0, "x as bfloat16 differs");
    for (long count = 1; count < m && count < 19; count++) {
        long row = below(m - count + 1);
        float *some = run(parts, x + row * k, count, k, FLOAT32, FLOAT32);
        CHECK(memcmp(some, whole + row * width, count * width * 4) == 0, "format %d: %ld rows differ among others",
              (int)first.format, count);
        some = run(parts, (uint16_t *)narrow + row * k, count, k, BFLOAT16, FLOAT32);
        CHECK(memcmp(some, of_narrow + row * width, count * width * 4) == 0,
              "format %d: %ld rows of bfloat16 differ among others", (int)first.format, count);
    }
    for (long i = 0; i < m * width; i++) {
        uint16_t expected;
        put(&expected, 0, whole[i], BFLOAT16);
        CHECK(((uint16_t *)rounded)[i] == expected, "bfloat16 result [%ld]", i);
    }
    set_threads(3);
    CHECK(memcmp(run(parts, x, m, k, FLOAT32, FLOAT32), whole, m * width * 4) == 0, "threads change products");
    set_threads(1);
    x[2 * k - 1] = NAN;
    float *poisoned = run(parts, x, m, k, FLOAT32, FLOAT32);
    for (long i = 0; i < m * width; i++) CHECK(isnan(poisoned[i]) == (i / width == 1), "NaN in row 1: [%ld]", i);
    free_all();
}

/* The largest codes times the largest values, all of one sign: no sum of 16 bits may overflow. */
static void check_extremes(const struct block *b, int byte, float value) {
    const long m = 7, k = 256;
    struct quantised *parts = make(TWO, sizeof *parts);
    float *x = make(m * k, 4);
    for (long i = 0; i < m * k; i++) x[i] = value;
    for (int i = 0; i < TWO; i++) parts[i] = blocks_of(b, 16, k, byte);
    check_values(parts, x, run(parts, x, m, k, FLOAT32, FLOAT32), m, k);
    free_all();
}

/* A level orders the integers for its instructions; `products` shows that it reads them so. */
static void check_rounding(enum dtype type, long k) {
    const long m = 5, n = (k + INPUTS - 1) / INPUTS;
    struct rounded job = {random_values(m * k, type, 3), m, k, n, type, make(m * n * INPUTS, 2), make(m * n, 4),
                          make(SUMS * m * n, 4), make(SUMS * m * n, 4)};
    for (long i = 0; i < INPUTS && i < k; i++) put((void *)job.x, 2 * k + i, 0, type); /* a block of zeros */
    kernels->round_rows(&job, 0, m);
    for (long b = 0; b < m * n; b++) {
        double largest = 0, scale = job.scales[b], sums[SUMS] = {0};
        for (long i = 0; i < INPUTS; i++) {
            long at = b % n * INPUTS + i;
            double x = at < k ? get(job.x, b / n * k + at, type) : 0;
            largest = fmax(largest, fabs(x));
            sums[i / 16] += x;
            sums[WHOLE] += x;
        }
        CHECK(fabs(scale * 32767 - largest) <= largest * 1e-6, "rounding: scale %g of %g", scale, largest);
        for (int h = 0; h < SUMS; h++) {
            double got = scale * job.sums[SUMS * b + h];
            CHECK(fabs(got - sums[h]) <= 32 * 0.51 * scale, "rounding: the sum %g became %g", sums[h], got);
            CHECK(job.weighted[SUMS * b + h] == job.scales[b] * (float)job.sums[SUMS * b + h], "rounding: weighted sums");
        }
    }
    free_all();
}

/* Every finite float16 as a scale. */
static void check_halves(void) {
    const long n = 2 * 0x7c00, k = 32, bytes = 34;
    uint8_t *rows = make(n * bytes, 1);
    memset(rows, 0, n * bytes);
    for (long i = 0; i < n; i++) {
        uint16_t half = (uint16_t)(i < 0x7c00 ? i : i - 0x7c00 + 0x8000);
        memcpy(rows + i * bytes, &half, 2);
        rows[i * bytes + 2] = 1;
    }
    struct quantised w = new_weight(Q8_0, 1, n, k);
    CHECK(pack_ggml(8, rows, k / 32 * bytes, (void *)(intptr_t)w.packed, n, k) == 0, "pack_ggml");
    float x[32] = {32767}, *out = make(n, 4);
    CHECK(quantised_run(x, &w, 1, out, 1, k, FLOAT32, FLOAT32) == 0, "quantised_run");
    for (long i = 0; i < n; i++) {
        uint16_t half = (uint16_t)(i < 0x7c00 ? i : i - 0x7c00 + 0x8000);
        CHECK(out[i] == (float)(32767 * half_value(half)), "float16 %04x became %g / 32767", half, out[i]);
    }
    free_all();
}

/* Values in all magnitudes. Where the level multiplies bfloat16 as it is, weights are rounded to that. */
static void check_float8(long n, long m, long k, long group) {
    long groups = (k + group - 1) / group;
    uint8_t *codes = make(n * k, 1);
    float *scales = random_values(n * groups, FLOAT32, 0.1f), *x = exact_values(m, k);
    for (long i = 0; i < n * k; i++) codes[i] = (uint8_t)(below(127) | below(2) << 7);
    void *narrow = make(m * k, 2);
    for (long i = 0; i < m * k; i++) put(narrow, i, x[i], BFLOAT16);
    struct quantised w = {(intptr_t)make(float8_bytes(n, k, group) / 16, 16), (intptr_t)random_values(n, FLOAT32, 1), n,
                          ROWS_FLOAT8, group};
    pack_float8(codes, scales, (void *)(intptr_t)w.packed, n, k, group);
    for (int type = FLOAT32; type <= BFLOAT16; type++) {
        const char *from = type == FLOAT32 ? (void *)x : narrow;
        float *out = make(m * n, 4), *some = make(m * n, 4);
        CHECK(quantised_run(from, &w, 1, out, m, k, type, FLOAT32) == 0, "quantised_run");
        double part = type == BFLOAT16 && kernels->bf16_as_it_is ? 0x1p-8 : 2e-6;
        for (long r = 0; r < m; r++)
            for (long c = 0; c < n; c++) {
                double sum = ((float *)(intptr_t)w.bias)[c], size = 1;
                for (long i = 0; i < k; i++) {
                    double product = x[r * k + i] * e4m3_value(codes[c * k + i]) * scales[c * groups + i / group];
                    sum += product;
                    size += fabs(product);
                }
                CHECK(fabs(out[r * n + c] - sum) <= part * size, "float8 m %ld k %ld [%ld, %ld]: %g, not %g", m, k, r, c,
                      out[r * n + c], sum);
            }
        for (long count = 1; count < m && count < 19; count++) {
            long row = below(m - count + 1);
            CHECK(quantised_run(from + row * k * size_of(type), &w, 1, some, count, k, type, FLOAT32) == 0, "run");
            CHECK(memcmp(some, out + row * n, count * n * 4) == 0, "float8: %ld rows differ among others", count);
        }
    }
    free_all();
}

void check_quantised(void) {
    for (unsigned i = 0; i < sizeof blocks / sizeof *blocks; i++) {
        const struct block *b = &blocks[i];
        check_weight(random_blocks(b, 37, 512), random_blocks(b, 5, 512), 18, 512);
        check_weight(random_blocks(b, 16, b->inputs), random_int8(1, b->inputs), 2, b->inputs);
        for (int byte = 0; byte < 4; byte++) {
            check_extremes(b, (const int[]){0, 0x7f, 0x80, 0xff}[byte], 127);
            check_extremes(b, (const int[]){0, 0x7f, 0x80, 0xff}[byte], -127);
        }
    }
    check_weight(random_blocks(&blocks[7], 20, 768), random_blocks(&blocks[9], 9, 768), 140, 768);
    static const long depths[] = {1, 31, 32, 33, 100, 520};
    for (unsigned i = 0; i < sizeof depths / sizeof *depths; i++) {
        check_weight(random_int8(37, depths[i]), random_int8(3, depths[i]), 10, depths[i]);
        check_rounding(FLOAT32, depths[i]);
        check_rounding(BFLOAT16, depths[i]);
    }
    for (long per = 1; per <= 4; per++) check_weight(random_groups(37, 384, per), random_groups(19, 384, 4), 10, 384);
    check_halves();
    check_float8(37, 10, 300, 128);
    check_float8(64, 140, 256, 64);
    check_float8(3, 4, 33, 4);
}
