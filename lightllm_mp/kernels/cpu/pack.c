/* Weights in the order in which the kernels read them: plain ones in panels, quantised ones in sections and planes.
 *
 * The block formats of GGUF files are ggml's; the names of their fields are those of ggml's documentation. */
#include <string.h>

#define LANES 4
#include "level/vector.h"

/* Plain weights. */

static long panels(long n) { return (n + PANEL - 1) / PANEL; }
static long padded_k(long k, enum dtype type) { return type == BFLOAT16 ? (k + 31) / 32 * 32 : k; }

long packed_bytes(long n, long k, enum dtype type) {
    return panels(n) * PANEL * padded_k(k, type) * (type == BFLOAT16 ? 2 : 4);
}

struct pack {
    const void *weight;
    void *packed;
    long n, k;
    enum dtype type;
};

static void pack_panel(void *arg, long panel) {
    const struct pack *job = arg;
    long kp = padded_k(job->k, job->type);
    for (long c = 0; c < PANEL; c++) {
        long row = panel * PANEL + c;
        for (long k = 0; k < kp; k++) {
            int inside = row < job->n && k < job->k;
            long from = row * job->k + k;
            if (job->type == BFLOAT16)
                ((uint16_t *)job->packed)[panel * PANEL * kp + (k / 2 * PANEL + c) * 2 + k % 2] =
                    inside ? ((const uint16_t *)job->weight)[from] : 0;
            else
                ((float *)job->packed)[panel * PANEL * kp + k * PANEL + c] =
                    inside ? ((const float *)job->weight)[from] : 0;
        }
    }
}

void pack_weight(const void *weight, void *packed, long n, long k, enum dtype type) {
    struct pack job = {weight, packed, n, k, type};
    parallel_for(pack_panel, &job, panels(n));
}

static long float8_panel_bytes(long k, long group) {
    long kp = padded_k(k, BFLOAT16);
    return PANEL * (kp + (kp + group - 1) / group * (long)sizeof(float));
}

long float8_bytes(long n, long k, long group) { return panels(n) * float8_panel_bytes(k, group); }

struct float8 {
    const uint8_t *values;
    const float *scales;
    uint8_t *packed;
    long n, k, group;
};

static void pack_float8_panel(void *arg, long panel) {
    const struct float8 *job = arg;
    long kp = padded_k(job->k, BFLOAT16), groups = (job->k + job->group - 1) / job->group;
    uint8_t *to = job->packed + panel * float8_panel_bytes(job->k, job->group);
    float *scales = (float *)(to + kp * PANEL);
    memset(to, 0, float8_panel_bytes(job->k, job->group));
    for (long c = 0; c < PANEL && panel * PANEL + c < job->n; c++) {
        long row = panel * PANEL + c;
        for (long k = 0; k < job->k; k++) to[(k / 4 * PANEL + c) * 4 + k % 4] = job->values[row * job->k + k];
        for (long g = 0; g < groups; g++) scales[g * PANEL + c] = job->scales[row * groups + g] * 0x1p120f;
    }
}

void pack_float8(const uint8_t *values, const float *scales, void *packed, long n, long k, long group) {
    struct float8 job = {values, scales, packed, n, k, group};
    parallel_for(pack_float8_panel, &job, panels(n));
}

/* Quantised weights. */

#define FORMAT_LINE(name, ...) [name] = {__VA_ARGS__},
const struct format formats[FORMATS] = {EACH_FORMAT(FORMAT_LINE)};

const int8_t iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

const int8_t e2m1_values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

/* ggml's numbers of types, bytes of a block, and inputs of it. */
static const struct ggml {
    int type, format, bytes, inputs;
} ggml[] = {
    {2, Q4_0, 18, 32},    {3, Q4_1, 20, 32},    {6, Q5_0, 22, 32},     {7, Q5_1, 24, 32},
    {8, Q8_0, 34, 32},    {10, Q2_K, 84, 256},  {11, Q3_K, 110, 256},  {12, Q4_K, 144, 256},
    {13, Q5_K, 176, 256}, {14, Q6_K, 210, 256}, {20, IQ4_NL, 18, 32},  {23, IQ4_XS, 136, 256},
    {39, MXFP4, 17, 32},
};

static const struct ggml *ggml_of(int type) {
    for (unsigned i = 0; i < sizeof ggml / sizeof *ggml; i++)
        if (ggml[i].type == type) return &ggml[i];
    return NULL;
}

int ggml_format(int type) {
    const struct ggml *g = ggml_of(type);
    return g ? g->format : -1;
}

static long section_bytes(const struct format *f, long per) { return f->head + per * f->block; }

static long panel_bytes(const struct format *f, long per, long k) {
    long blocks = (k + INPUTS - 1) / INPUTS;
    return (blocks + per - 1) / per * section_bytes(f, per);
}

long quantised_bytes(int format, long per, long n, long k) {
    return (n + OUTPUTS - 1) / OUTPUTS * panel_bytes(&formats[format], per, k);
}

/* One output's block of INPUTS, whatever it was stored as. */
struct decoded {
    uint8_t codes[INPUTS];
    const uint8_t *nibbles; /* or 16 bytes with codes j (low half) and j + 16, which are the plane of 4 as it is */
    uint16_t scale, minimum; /* float16: scales or steps; of EXPONENT the exponent */
    int8_t steps[2];
    uint8_t minimum_steps[2];
};

static uint16_t word(const uint8_t *p) { return (uint16_t)(p[0] | p[1] << 8); }

static void nibbles(const uint8_t *qs, uint8_t *codes) {
    for (int j = 0; j < 16; j++) {
        codes[j] = qs[j] & 15;
        codes[j + 16] = qs[j] >> 4;
    }
}

static void fifth_bits(const uint8_t *qh, uint8_t *codes) {
    for (int j = 0; j < 32; j++) codes[j] |= (qh[j / 8] >> (j % 8) & 1) << 4;
}

/* Step i of the 6-bit steps and minima of Q4_K and Q5_K. */
static void steps_of_six(const uint8_t *s, int i, struct decoded *to) {
    to->steps[0] = (int8_t)(i < 4 ? s[i] & 63 : (s[i + 4] & 15) | s[i - 4] >> 6 << 4);
    to->minimum_steps[0] = i < 4 ? s[i + 4] & 63 : s[i + 4] >> 4 | s[i] >> 6 << 4;
}

/* Block i (of INPUTS) of the ggml block at `p`. */
static void decode(int format, const uint8_t *p, int i, struct decoded *to) {
    int n = i / 4, j = i % 4; /* the k formats store 128 inputs together, 32 for each shift */
    switch (format) {
        case Q4_0:
        case IQ4_NL:
            to->scale = word(p);
            to->nibbles = p + 2;
            break;
        case MXFP4:
            to->scale = p[0];
            to->nibbles = p + 1;
            break;
        case Q4_1:
            to->scale = word(p);
            to->minimum = word(p + 2);
            to->nibbles = p + 4;
            break;
        case Q5_0:
            to->scale = word(p);
            nibbles(p + 6, to->codes);
            fifth_bits(p + 2, to->codes);
            break;
        case Q5_1:
            to->scale = word(p);
            to->minimum = word(p + 2);
            nibbles(p + 8, to->codes);
            fifth_bits(p + 4, to->codes);
            break;
        case Q8_0:
            to->scale = word(p);
            for (int l = 0; l < 32; l++) to->codes[l] = p[2 + l] ^ 0x80;
            break;
        case Q2_K: /* scales[16], qs[64], d, dmin */
            to->scale = word(p + 80);
            to->minimum = word(p + 82);
            for (int s = 0; s < 2; s++) {
                to->steps[s] = p[2 * i + s] & 15;
                to->minimum_steps[s] = p[2 * i + s] >> 4;
            }
            for (int l = 0; l < 32; l++) to->codes[l] = p[16 + 32 * n + l] >> (2 * j) & 3;
            break;
        case Q3_K: /* hmask[32], qs[64], scales[12], d */
            to->scale = word(p + 108);
            for (int s = 0; s < 2; s++) {
                int at = 2 * i + s, low = at < 8 ? p[96 + at] & 15 : p[96 + at - 8] >> 4;
                to->steps[s] = (int8_t)((low | (p[104 + at % 4] >> (2 * (at / 4)) & 3) << 4) - 32);
            }
            for (int l = 0; l < 32; l++)
                to->codes[l] = (p[32 + 32 * n + l] >> (2 * j) & 3) | (p[l] >> i & 1) << 2;
            break;
        case Q4_K: /* d, dmin, scales[12], qs[128] */
        case Q5_K: /* d, dmin, scales[12], qh[32], qs[128] */
            to->scale = word(p);
            to->minimum = word(p + 2);
            steps_of_six(p + 4, i, to);
            for (int l = 0; l < 32; l++) {
                const uint8_t *qs = p + (format == Q4_K ? 16 : 48);
                to->codes[l] = qs[32 * (i / 2) + l] >> (4 * (i % 2)) & 15;
                if (format == Q5_K) to->codes[l] |= (p[16 + l] >> i & 1) << 4;
            }
            break;
        case Q6_K: /* ql[128], qh[64], scales[16], d */
            to->scale = word(p + 208);
            for (int s = 0; s < 2; s++) to->steps[s] = (int8_t)p[192 + 2 * i + s];
            for (int l = 0; l < 32; l++)
                to->codes[l] = (p[64 * n + 32 * (j % 2) + l] >> (4 * (j / 2)) & 15) |
                               (p[128 + 32 * n + l] >> (2 * j) & 3) << 4;
            break;
        default: /* IQ4_XS: d, scales_h, scales_l[4], qs[128] */
            to->scale = word(p);
            to->steps[0] =
                (int8_t)(((p[4 + i / 2] >> (4 * (i % 2)) & 15) | (word(p + 2) >> (2 * i) & 3) << 4) - 32);
            to->nibbles = p + 8 + 16 * i;
            break;
    }
}

static int plane4(enum codes kind) { return kind == CODES_2 || kind == CODES_3 ? 0 : 4 * GROUP_BYTES; }

static int steps_at(enum codes kind) {
    static const int planes[] = {[CODES_2] = 2, [CODES_3] = 3, [CODES_4] = 4, [CODES_5] = 5,
                                 [CODES_6] = 6, [CODES_8] = 8, [CODES_TABLE] = 4, [CODES_E2M1] = 4};
    return planes[kind] * GROUP_BYTES;
}

static void put_code(uint8_t *block, enum codes kind, long output, int input, unsigned code) {
    int g = input / 4;
    long at = output * 4 + input % 4;
    uint8_t *rest = block + plane4(kind);
    if (kind == CODES_8) {
        block[g * GROUP_BYTES + at] = (uint8_t)code;
        return;
    }
    if (plane4(kind)) {
        block[g % 4 * GROUP_BYTES + at] |= (code & 15) << (g / 4 * 4);
        if (kind == CODES_5) rest[at] |= (code >> 4) << g;
        if (kind == CODES_6) rest[g / 4 * GROUP_BYTES + at] |= (code >> 4) << (2 * (g % 4));
        return;
    }
    rest[g / 4 * GROUP_BYTES + at] |= (code & 3) << (2 * (g % 4));
    if (kind == CODES_3) rest[2 * GROUP_BYTES + at] |= (code >> 2) << g;
}

static unsigned get_code(const uint8_t *block, enum codes kind, long output, int input) {
    int g = input / 4;
    long at = output * 4 + input % 4;
    const uint8_t *rest = block + plane4(kind);
    if (kind == CODES_8) return block[g * GROUP_BYTES + at];
    if (plane4(kind)) {
        unsigned low = block[g % 4 * GROUP_BYTES + at] >> (g / 4 * 4) & 15;
        if (kind == CODES_5) return low | (rest[at] >> g & 1) << 4;
        if (kind == CODES_6) return low | (rest[g / 4 * GROUP_BYTES + at] >> (2 * (g % 4)) & 3) << 4;
        return low;
    }
    unsigned low = rest[g / 4 * GROUP_BYTES + at] >> (2 * (g % 4)) & 3;
    return kind == CODES_3 ? low | (rest[2 * GROUP_BYTES + at] >> g & 1) << 2 : low;
}

struct packing {
    int format;
    const struct ggml *ggml;
    const uint8_t *rows; /* ggml's rows; or the values of ROWS_INT8; or the codes of GROUPS_INT4 */
    long row_bytes, n, k, per;
    const float *scales;
    const uint8_t *zeros;
    uint8_t *packed;
};

static void pack_decoded(const struct packing *job, uint8_t *head, uint8_t *block, long output, long row, long b) {
    const struct format *f = &formats[job->format];
    struct decoded d = {.nibbles = NULL};
    int each = job->ggml->inputs / INPUTS;
    decode(job->format, job->rows + row * job->row_bytes + b / each * job->ggml->bytes, (int)(b % each), &d);
    for (int g = 0; d.nibbles && g < GROUPS / 2; g++) memcpy(block + g * GROUP_BYTES + output * 4, d.nibbles + 4 * g, 4);
    for (int i = 0; !d.nibbles && i < INPUTS; i++) put_code(block, f->codes, output, i, d.codes[i]);
    if (f->scaling == EXPONENT)
        head[output] = (uint8_t)d.scale;
    else
        memcpy(head + 2 * output, &d.scale, 2);
    if (f->minimum != NO_MINIMUM) memcpy(head + 2 * OUTPUTS + 2 * output, &d.minimum, 2);
    uint8_t *steps = block + steps_at(f->codes);
    for (int s = 0; s < f->subs; s++) {
        if (f->scaling == NIBBLES) steps[s * OUTPUTS + output] = (uint8_t)(d.steps[s] | d.minimum_steps[s] << 4);
        if (f->scaling != STEPS) continue;
        steps[s * OUTPUTS + output] = (uint8_t)d.steps[s];
        if (f->minimum == STEPS_MINIMUM) steps[(f->subs + s) * OUTPUTS + output] = d.minimum_steps[s];
    }
}

static void pack_plain(const struct packing *job, uint8_t *head, uint8_t *block, long output, long row, long b) {
    const struct format *f = &formats[job->format];
    long sections = ((job->k + INPUTS - 1) / INPUTS + job->per - 1) / job->per;
    memcpy(head + 4 * output, job->scales + row * sections + b / job->per, 4);
    if (job->format == GROUPS_INT4) head[4 * OUTPUTS + output] = job->zeros[row * sections + b / job->per];
    for (int i = 0; i < INPUTS && b * INPUTS + i < job->k; i++) {
        unsigned code = job->rows[row * job->k + b * INPUTS + i];
        put_code(block, f->codes, output, i, job->format == ROWS_INT8 ? code ^ 0x80 : code);
    }
}

static void pack_quantised_panel(void *arg, long panel) {
    const struct packing *job = arg;
    const struct format *f = &formats[job->format];
    long bytes = panel_bytes(f, job->per, job->k);
    uint8_t *to = job->packed + panel * bytes;
    memset(to, 0, bytes);
    for (long b = 0; b < (job->k + INPUTS - 1) / INPUTS; b++) {
        uint8_t *head = to + b / job->per * section_bytes(f, job->per), *block = head + f->head + b % job->per * f->block;
        for (long o = 0; o < OUTPUTS && panel * OUTPUTS + o < job->n; o++)
            (job->ggml ? pack_decoded : pack_plain)(job, head, block, o, panel * OUTPUTS + o, b);
    }
}

static void pack_panels(struct packing *job) { parallel_for(pack_quantised_panel, job, (job->n + OUTPUTS - 1) / OUTPUTS); }

int pack_ggml(int type, const void *rows, long row_bytes, void *packed, long n, long k) {
    const struct ggml *g = ggml_of(type);
    if (g == NULL || k % g->inputs || row_bytes != k / g->inputs * g->bytes) return -1;
    struct packing job = {g->format, g, rows, row_bytes, n, k, formats[g->format].per, NULL, NULL, packed};
    pack_panels(&job);
    return 0;
}

void pack_int8(const int8_t *values, const float *scales, void *packed, long n, long k, long per) {
    struct packing job = {ROWS_INT8, NULL, (const uint8_t *)values, k, n, k, per, scales, NULL, packed};
    pack_panels(&job);
}

void pack_grouped(const uint8_t *codes, const float *scales, const uint8_t *zeros, void *packed, long n, long k, long per) {
    struct packing job = {GROUPS_INT4, NULL, codes, k, n, k, per, scales, zeros, packed};
    pack_panels(&job);
}

static float half_at(const uint8_t *p, long i) {
    uint16_t half;
    memcpy(&half, p + 2 * i, 2);
    return half_float(half);
}

/* 2^(e - 128); the two least are no normal numbers. */
static float power_of_two(uint32_t e) {
    uint32_t bits = e < 2 ? (e + 1) << 21 : (e - 1) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return power;
}

static int least_step(const struct format *f, const uint8_t *steps, long output, int sub) {
    return f->scaling == NIBBLES ? steps[sub * OUTPUTS + output] >> 4 : steps[(f->subs + sub) * OUTPUTS + output];
}

/* Scale and minimum of one output in a part of a block. */
static void scale_of(const struct format *f, const uint8_t *head, const uint8_t *block, long output, int sub, float *scale,
                     float *minimum) {
    const uint8_t *second = head + (f->scaling == FLOAT ? 4 : 2) * OUTPUTS, *steps = block + steps_at(f->codes);
    switch (f->scaling) {
        case FLOAT: memcpy(scale, head + 4 * output, 4); break;
        case EXPONENT: *scale = power_of_two(head[output]); break;
        case STEPS: *scale = half_at(head, output) * (int8_t)steps[sub * OUTPUTS + output]; break;
        case NIBBLES: *scale = half_at(head, output) * (steps[sub * OUTPUTS + output] & 15); break;
        default: *scale = half_at(head, output); break;
    }
    switch (f->minimum) {
        case HALF_MINIMUM: *minimum = half_at(second, output); break;
        case STEPS_MINIMUM: *minimum = -half_at(second, output) * least_step(f, steps, output, sub); break;
        case ZERO_POINT: *minimum = -*scale * second[output]; break;
        default: *minimum = 0; break;
    }
}

struct expansion {
    const struct quantised *parts;
    const int64_t *rows;
    void *out;
    long k;
    enum dtype type;
};

static void expand_row(const struct expansion *job, const struct quantised *w, long line, long row) {
    const struct format *f = &formats[w->format];
    const uint8_t *panel = (const uint8_t *)(intptr_t)w->packed + line / OUTPUTS * panel_bytes(f, w->per, job->k);
    for (long b = 0; b * INPUTS < job->k; b++) {
        const uint8_t *head = panel + b / w->per * section_bytes(f, w->per), *block = head + f->head + b % w->per * f->block;
        float scale = 0, minimum = 0;
        for (int i = 0; i < INPUTS && b * INPUTS + i < job->k; i++) {
            int each = INPUTS / f->subs;
            if (i % each == 0) scale_of(f, head, block, line % OUTPUTS, i / each, &scale, &minimum);
            int code = (int)get_code(block, f->codes, line % OUTPUTS, i);
            int value = f->codes == CODES_TABLE  ? iq4_values[code]
                        : f->codes == CODES_E2M1 ? e2m1_values[code]
                                                 : code - f->zero;
            store_one(job->out, row * job->k + b * INPUTS + i, scale * (float)value + minimum, job->type);
        }
    }
}

static void expand_some(const void *arg, long from, long to) {
    const struct expansion *job = arg;
    for (long row = from; row < to; row++) {
        const struct quantised *w = job->parts;
        long line = job->rows[row];
        for (; line >= w->n; w++) line -= w->n;
        expand_row(job, w, line, row);
    }
}

void expand_rows(const struct quantised *parts, long k, const int64_t *rows, long count, void *out, enum dtype type) {
    struct expansion job = {parts, rows, out, k, type};
    over_rows(expand_some, &job, count, 16 * k); /* a value takes as long as sixteen of a norm */
}
