/* Products of quantised weights with rows of x.
 *
 * A few blocks of a panel are unpacked to bytes and float32 scales, which fit the first cache; then every row is
 * multiplied by them. The sums of a scale's inputs are added in float32, block after block: a row's result depends on its
 * own values alone.
 *
 * A level gives
 *   DOT_PANELS the panels at once, where it is not one: 2. Their outputs lie side by side in WIDTH. */
#define CHUNK_BLOCKS 8 /* unpacked at once */
#ifndef AHEAD
#define AHEAD 8192 /* bytes of a panel */
#endif
#ifndef DOT_PANELS
#define DOT_PANELS 1
#endif
#define WIDTH (DOT_PANELS * OUTPUTS)
#define PARTS (WIDTH / LANES)

struct unpacked {
    uint8_t codes[CHUNK_BLOCKS * GROUPS * WIDTH * 4]; /* [blocks][GROUPS][WIDTH][4] */
    float scales[CHUNK_BLOCKS * 2 * WIDTH];           /* [blocks][subs][WIDTH] */
    float minima[CHUNK_BLOCKS * 2 * WIDTH];
    float sums[MAX_ROWS_AT_ONCE * WIDTH];             /* [rows][WIDTH] */
} __attribute__((aligned(64)));

typedef uint16_t pairs __attribute__((vector_size(LANES * 4))); /* pairs of bytes: there are no shifts of bytes */
#define PAIRS_OF(byte) ((byte) * 0x0101)

typedef pairs pairs_anywhere ANYWHERE;

INLINE pairs load_pairs(const uint8_t *p) { return *(const pairs_anywhere *)p; }

INLINE pairs high_bits(const uint8_t *plane, int group, long part, enum codes kind) {
    if (kind == CODES_6) return (load_pairs(plane + group / 4 * GROUP_BYTES + part) >> (2 * (group % 4)) & PAIRS_OF(3)) << 4;
    if (kind == CODES_5) return (load_pairs(plane + part) >> group & PAIRS_OF(1)) << 4;
    return (load_pairs(plane + part) >> group & PAIRS_OF(1)) << 2;
}

#ifndef look_up /* a level may have an instruction for it: the bytes of `v` as places in a table of 16 */
INLINE pairs look_up(pairs v, const int8_t *table) {
    uint8_t bytes[sizeof v];
    memcpy(bytes, &v, sizeof v);
    for (unsigned i = 0; i < sizeof v; i++) bytes[i] = (uint8_t)table[bytes[i]];
    memcpy(&v, bytes, sizeof v);
    return v;
}
#endif

INLINE void unpack_codes(const uint8_t *planes, uint8_t *codes, enum codes kind) {
    const int nibbles = kind != CODES_2 && kind != CODES_3;
    const uint8_t *high = planes + (nibbles ? 4 : 2) * GROUP_BYTES;
    for (long part = 0; part < GROUP_BYTES; part += LANES * 4) {
        for (int g = 0; g < GROUPS; g++) {
            pairs v;
            if (kind == CODES_8) {
                v = load_pairs(planes + g * GROUP_BYTES + part);
            } else if (nibbles) {
                v = load_pairs(planes + g % 4 * GROUP_BYTES + part) >> (g / 4 * 4) & PAIRS_OF(15);
            } else {
                v = load_pairs(planes + g / 4 * GROUP_BYTES + part) >> (2 * (g % 4)) & PAIRS_OF(3);
            }
            if (kind == CODES_3 || kind == CODES_5 || kind == CODES_6) v |= high_bits(high, g, part, kind);
            if (kind == CODES_TABLE) v = look_up(v, iq4_values) ^ PAIRS_OF(0x80);
            if (kind == CODES_E2M1) v = look_up(v, e2m1_values) ^ PAIRS_OF(0x80);
            *(pairs_anywhere *)(codes + g * WIDTH * 4 + part) = v;
        }
    }
}

INLINE long plane_bytes(enum codes kind) {
    switch (kind) {
        case CODES_2: return 2 * GROUP_BYTES;
        case CODES_3: return 3 * GROUP_BYTES;
        case CODES_5: return 5 * GROUP_BYTES;
        case CODES_6: return 6 * GROUP_BYTES;
        case CODES_8: return 8 * GROUP_BYTES;
        default: return 4 * GROUP_BYTES;
    }
}

/* What a section's head says of LANES outputs. */
struct head {
    vf scale, minimum;
};

/* 2^(e - 128); the two least are no normal numbers. */
INLINE vf powers_of_two(const uint8_t *exponents) {
    vi e = __builtin_convertvector(load_uint8(exponents), vi);
    vf normal = (vf)((e - 1) << 23), least = (vf)((e + 1) << 21);
    return select_vf(e < 2, least, normal);
}

INLINE struct head read_head(const struct format *f, const uint8_t *head, int i) {
    const uint8_t *second = head + (f->scaling == FLOAT ? 4 : 2) * OUTPUTS;
    struct head h = {{0}, {0}};
    if (f->scaling == EXPONENT)
        h.scale = powers_of_two(head + i);
    else
        h.scale = f->scaling == FLOAT ? load_float((const float *)head + i) : load_half((const uint16_t *)head + i);
    if (f->minimum == HALF_MINIMUM || f->minimum == STEPS_MINIMUM) h.minimum = load_half((const uint16_t *)second + i);
    if (f->minimum == ZERO_POINT) h.minimum = h.scale * -load_uint8(second + i);
    return h;
}

/* Scales and minima of `count` blocks of a section. */
INLINE void unpack_scales(const struct format *f, const uint8_t *head, const uint8_t *block, long count, float *scales,
                          float *minima) {
    for (int i = 0; i < OUTPUTS; i += LANES) {
        struct head h = read_head(f, head, i);
        for (long b = 0; b < count; b++) {
            const uint8_t *steps = block + b * f->block + plane_bytes(f->codes);
            for (int s = 0; s < f->subs; s++) {
                long at = (b * f->subs + s) * WIDTH + i;
                vf scale = h.scale, minimum = h.minimum;
                if (f->scaling == STEPS) scale *= load_int8(steps + s * OUTPUTS + i);
                if (f->scaling == STEPS && f->minimum == STEPS_MINIMUM)
                    minimum *= -load_uint8(steps + (f->subs + s) * OUTPUTS + i);
                if (f->scaling == NIBBLES) {
                    scale *= load_nibbles(steps + s * OUTPUTS + i, 0);
                    minimum *= -load_nibbles(steps + s * OUTPUTS + i, 4);
                }
                store(scales, at, scale, FLOAT32);
                if (f->minimum != NO_MINIMUM) store(minima, at, minimum, FLOAT32);
            }
        }
    }
}

/* Blocks [first, first + count) of a panel, the outputs of which begin at `output` of WIDTH. */
INLINE void unpack(const struct format *f, long per, const uint8_t *panel, long first, long count, struct unpacked *u,
                   long output) {
    long section = f->per == 1 ? first : first / per, within = f->per == 1 ? 0 : first % per;
    for (long done = 0; done < count;) {
        long some = per - within < count - done ? per - within : count - done, at = done * f->subs * WIDTH + output;
        const uint8_t *head = panel + section * (f->head + per * f->block), *block = head + f->head + within * f->block;
        unpack_scales(f, head, block, some, u->scales + at, u->minima + at);
        for (long i = 0; i < some; i++, done++, block += f->block)
            unpack_codes(block, u->codes + (done * GROUPS * WIDTH + output) * 4, f->codes);
        section++;
        within = 0;
    }
}

#include "multiply.h"

/* What is read AHEAD of a panel's blocks: weights are read once, and the processor's prefetchers stop where a page ends.
 * After a panel comes the one that its thread takes next. */
INLINE void prefetch(const uint8_t *from, long bytes) {
    for (long i = 0; i < bytes; i += 64) __builtin_prefetch(from + i, 0, 2);
}

/* Blocks of panels of one format times rows: everything about the format is a constant here. */
#define CHUNK(name, ...)                                                                                             \
    static void chunk_##name(const struct product *job, const uint8_t *const *panels, long panel_bytes, long row,    \
                             long rows, long first, long count, struct unpacked *u) {                                \
        static const struct format f = {__VA_ARGS__};                                                                \
        const long stride = f.per == 1 ? f.head + f.block : f.block + f.head / 8;                                    \
        const long ahead = first * stride + (panel_bytes < AHEAD ? panel_bytes : AHEAD);                             \
        const long next = ahead < panel_bytes ? ahead : ahead + (PANELS_AT_ONCE - 1) * panel_bytes;                  \
        for (int i = 0; i < DOT_PANELS; i++) {                                                                       \
            prefetch(panels[i] + next, count * stride);                                                              \
            unpack(&f, f.per ? f.per : job->w->per, panels[i], first, count, u, i * OUTPUTS);                        \
        }                                                                                                            \
        multiply_all(job->x, u, row, rows, first, count, &f);                                                        \
    }
EACH_FORMAT(CHUNK)

/* The outputs of a weight from `column` on, WIDTH of them or as many as there are. */
static void multiply_width(const struct product *job, long row, long rows, long column) {
#define CHUNK_OF(name, ...) [name] = chunk_##name,
    static void (*const chunk[])(const struct product *, const uint8_t *const *, long, long, long, long, long,
                                 struct unpacked *) = {EACH_FORMAT(CHUNK_OF)};
    const struct quantised *w = job->w;
    const struct format *f = &formats[w->format];
    struct unpacked u;
    long blocks = job->x->blocks, bytes = (blocks + w->per - 1) / w->per * (f->head + w->per * f->block);
    const uint8_t *panels[DOT_PANELS];
    for (int i = 0; i < DOT_PANELS; i++) { /* after the last panel comes the first again, and is not stored */
        long panel = column / OUTPUTS + (column + i * OUTPUTS < w->n ? i : 0);
        panels[i] = (const uint8_t *)(intptr_t)w->packed + panel * bytes;
    }
    memset(u.sums, 0, rows * WIDTH * sizeof *u.sums);
    for (long b = 0; b < blocks; b += CHUNK_BLOCKS)
        chunk[w->format](job, panels, bytes, row, rows, b, blocks - b < CHUNK_BLOCKS ? blocks - b : CHUNK_BLOCKS, &u);
    const float *bias = (const float *)(intptr_t)w->bias;
    long width = w->n - column < WIDTH ? w->n - column : WIDTH;
    for (long r = 0; r < rows; r++) {
        long at = (row + r) * job->width + job->first + column;
        EACH_PART(i, left, width, {
            vf v = load_float(u.sums + r * WIDTH + i);
            if (bias) v += load_part(bias, column + i, left, FLOAT32);
            if (job->out_type == BFLOAT16)
                store_part(job->out, at + i, left, v, BFLOAT16);
            else
                store_part(job->out, at + i, left, v, FLOAT32);
        });
    }
}

static void quantised_panels(const struct product *job, long row, long rows, long panel, long count) {
    for (long i = 0; i < count; i += DOT_PANELS) multiply_width(job, row, rows, (panel + i) * OUTPUTS);
}
