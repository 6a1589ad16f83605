/* LANES floats at a time, in the compiler's portable vector types. LANES is the width of the level's registers: a wider
 * type would be cut into pieces that live in memory. */
#ifndef LIGHTLLM_MP_VECTOR_H
#define LIGHTLLM_MP_VECTOR_H

#include <stdint.h>
#include <string.h>

#include "../native.h"

#define INLINE static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(LANES * 4)));
typedef uint32_t vu __attribute__((vector_size(LANES * 4)));
typedef int32_t vi __attribute__((vector_size(LANES * 4)));
typedef uint16_t vh __attribute__((vector_size(LANES * 2)));

/* Vectors at any address. (With memcpy the compiler may move them in halves, which the next load then waits for.) */
#define ANYWHERE __attribute__((aligned(1), may_alias))
typedef vf vf_anywhere ANYWHERE;
typedef vu vu_anywhere ANYWHERE;
typedef vh vh_anywhere ANYWHERE;

INLINE vf load_float(const void *p) { return *(const vf_anywhere *)p; }
INLINE void store_float(void *p, vf v) { *(vf_anywhere *)p = v; }

INLINE float bf16_float(uint16_t h) {
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

/* Nearest, ties to even; a NaN stays one. */
INLINE uint16_t float_bf16(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    if (f != f) return 0x7fc0;
    return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

INLINE float half_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff, u;
    float f;
    if (rest >= 0x7c00) { /* infinite, or no number */
        u = sign | 0x7f800000 | (rest & 0x3ff) << 13;
        memcpy(&f, &u, 4);
        return f;
    }
    u = rest << 13; /* as if its exponent were float32's: 2^112 too small, also where it is subnormal */
    memcpy(&f, &u, 4);
    f *= 0x1p112f;
    memcpy(&u, &f, 4);
    u |= sign;
    memcpy(&f, &u, 4);
    return f;
}

/* Nearest, ties to even. */
INLINE uint16_t float_half(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    uint16_t sign = u >> 16 & 0x8000;
    u &= 0x7fffffff;
    if (u > 0x7f800000) return sign | 0x7e00;
    if (u >= 0x477ff000) return sign | 0x7c00; /* 65520 and more */
    if (u < 0x38800000) {                      /* subnormal: adding 0.5 leaves the multiple of 2^-24 in the last bits */
        float wide;
        memcpy(&wide, &u, 4);
        wide += 0.5f;
        memcpy(&u, &wide, 4);
        return sign | (uint16_t)(u - 0x3f000000);
    }
    u += 0xfff + (u >> 13 & 1);
    return sign | (uint16_t)((u >> 13) - (112 << 10));
}

/* Float8 e4m3fn of a value of at most 448. Nearest, ties to even. */
INLINE uint8_t float_e4m3(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    uint8_t sign = u >> 24 & 0x80;
    u &= 0x7fffffff;
    if (u > 0x7f800000) return sign | 0x7f;
    if (u < 0x3c800000) { /* below 2^-6: adding 2^14 leaves the multiple of 2^-9 in the last bits */
        float wide;
        memcpy(&wide, &u, 4);
        wide += 0x1p14f;
        memcpy(&u, &wide, 4);
        return sign | (uint8_t)(u - 0x46800000);
    }
    u += 0x7ffff + (u >> 20 & 1);
    return sign | (uint8_t)((u >> 20) - (120 << 3));
}

/* a * b + c, rounded once where a level has an instruction for that. The compiler is told to fuse nothing by itself: it
 * would do so in one copy of a loop and not in another, and a row would depend on how many are with it. */
#ifndef multiply_add
#define multiply_add(a, b, c) ((a) * (b) + (c))
#endif

INLINE vf splat(float f) { return f - (vf){0}; }

#ifndef load_bf16 /* a level may have instructions for it */
INLINE vf load_bf16(const void *p) {
    vh h = *(const vh_anywhere *)p;
    return (vf)(__builtin_convertvector(h, vu) << 16);
}
#endif

INLINE void store_bf16(void *p, vf v) {
    vu u = (vu)v;
    vu rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    vu nan = (vu)(v != v);
    vu words = (rounded & ~nan) | (nan & 0x7fc0);
#ifdef narrow_words
    *(vh_anywhere *)p = narrow_words(words);
#else
    *(vh_anywhere *)p = __builtin_convertvector(words, vh);
#endif
}

typedef uint8_t v1 __attribute__((vector_size(LANES)));
typedef int8_t vs1 __attribute__((vector_size(LANES)));
typedef v1 v1_anywhere ANYWHERE;
typedef vs1 vs1_anywhere ANYWHERE;

#ifndef load_bytes_wide /* a level may have instructions for these */
#define load_bytes_wide(p) __builtin_convertvector(*(const v1_anywhere *)(p), vi)
#define load_signed_bytes_wide(p) __builtin_convertvector(*(const vs1_anywhere *)(p), vi)
#endif

INLINE vf load_int8(const void *p) { return __builtin_convertvector(load_signed_bytes_wide(p), vf); }
INLINE vf load_uint8(const void *p) { return __builtin_convertvector(load_bytes_wide(p), vf); }

/* Halves of bytes, from bit `shift` on. */
INLINE vf load_nibbles(const void *p, int shift) {
    return __builtin_convertvector(load_bytes_wide(p) >> shift & 15, vf);
}

INLINE vf load_e4m3(const void *p) {
    vu u = (vu)load_bytes_wide(p), rest = u & 0x7f;
    vf v = (vf)(rest << 20) * 0x1p120f;
    vu nan = (vu)(rest == 0x7f) & 0x7fc00000;
    return (vf)((vu)v | (u & 0x80) << 24 | nan);
}

#ifndef load_half /* a level may have an instruction for it */
INLINE vf load_half(const uint16_t *p) {
    float part[LANES];
    for (int i = 0; i < LANES; i++) part[i] = half_float(p[i]);
    return load_float(part);
}
#endif

/* Element i of a buffer of `type`; `type` is a constant where these are inlined. */
INLINE vf load(const void *p, long i, enum dtype type) {
    return type == BFLOAT16 ? load_bf16((const uint16_t *)p + i) : load_float((const float *)p + i);
}

INLINE void store(void *p, long i, vf v, enum dtype type) {
    if (type == BFLOAT16)
        store_bf16((uint16_t *)p + i, v);
    else
        store_float((float *)p + i, v);
}

INLINE float load_one(const void *p, long i, enum dtype type) {
    return type == BFLOAT16 ? bf16_float(((const uint16_t *)p)[i]) : ((const float *)p)[i];
}

INLINE void store_one(void *p, long i, float f, enum dtype type) {
    if (type == BFLOAT16)
        ((uint16_t *)p)[i] = float_bf16(f);
    else
        ((float *)p)[i] = f;
}

/* The first `left` of LANES elements, zeros after them. */
INLINE vf load_part(const void *p, long i, long left, enum dtype type) {
    if (left >= LANES) return load(p, i, type);
    float part[LANES] = {0};
    for (long j = 0; j < left; j++) part[j] = load_one(p, i + j, type);
    return load_float(part);
}

INLINE void store_part(void *p, long i, long left, vf v, enum dtype type) {
    if (left >= LANES) {
        store(p, i, v, type);
        return;
    }
    float part[LANES];
    store_float(part, v);
    for (long j = 0; j < left; j++) store_one(p, i + j, part[j], type);
}

/* Runs a statement for the parts of a row of n: `left` is the constant LANES but for a last, shorter part. */
#define EACH_PART(i, left, n, ...)                                      \
    do {                                                                \
        long i = 0;                                                     \
        for (; i + LANES <= (n); i += LANES) {                          \
            const long left = LANES;                                    \
            __VA_ARGS__                                                 \
        }                                                               \
        if (i < (n)) {                                                  \
            const long left = (n) - i;                                  \
            __VA_ARGS__                                                 \
        }                                                               \
    } while (0)

INLINE vf select_vf(vi mask, vf yes, vf no) { return (vf)(((vi)yes & mask) | ((vi)no & ~mask)); }

/* Lane i of SWAP(v, n) is lane i ^ n of v; n is a power of two. */
#ifdef __clang__
#define SHUFFLE(v, ...) __builtin_shufflevector(v, v, __VA_ARGS__)
#else
#define SHUFFLE(v, ...) __builtin_shuffle(v, (vi){__VA_ARGS__})
#endif
#if LANES == 16
#define ORDER(n) \
    0 ^ n, 1 ^ n, 2 ^ n, 3 ^ n, 4 ^ n, 5 ^ n, 6 ^ n, 7 ^ n, 8 ^ n, 9 ^ n, 10 ^ n, 11 ^ n, 12 ^ n, 13 ^ n, 14 ^ n, 15 ^ n
#elif LANES == 8
#define ORDER(n) 0 ^ n, 1 ^ n, 2 ^ n, 3 ^ n, 4 ^ n, 5 ^ n, 6 ^ n, 7 ^ n
#else
#define ORDER(n) 0 ^ n, 1 ^ n, 2 ^ n, 3 ^ n
#endif
#define SWAP(v, n) SHUFFLE(v, ORDER(n))
#if LANES == 16
#define MIDDLE_SWAPPED 0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15
#elif LANES == 8
#define MIDDLE_SWAPPED 0, 2, 1, 3, 4, 6, 5, 7
#else
#define MIDDLE_SWAPPED 0, 2, 1, 3
#endif

/* Before a loop that has to stay one: unrolled whole, the compiler would compute all products first and keep them in memory. */
#define KEEP_LOOP _Pragma("GCC unroll 2")
/* Before a loop over rows whose sums are to stay in registers. */
#define EACH_ROW _Pragma("GCC unroll 8")

/* Joins all lanes into each, always by the same tree. */
#if LANES == 16
#define FOLD(v, join) v = join(v, SWAP(v, 8)), v = join(v, SWAP(v, 4)), v = join(v, SWAP(v, 2)), v = join(v, SWAP(v, 1))
#elif LANES == 8
#define FOLD(v, join) v = join(v, SWAP(v, 4)), v = join(v, SWAP(v, 2)), v = join(v, SWAP(v, 1))
#else
#define FOLD(v, join) v = join(v, SWAP(v, 2)), v = join(v, SWAP(v, 1))
#endif
#define PLUS(a, b) ((a) + (b))

INLINE float sum_lanes(vf v) {
    FOLD(v, PLUS);
    return v[0];
}

INLINE uint32_t sum_words(vu v) {
    FOLD(v, PLUS);
    return v[0];
}

INLINE vf larger(vf a, vf b) { return select_vf(a > b, a, b); }

INLINE float max_lanes(vf v) {
    FOLD(v, larger);
    return v[0];
}

INLINE vi larger_words(vi a, vi b) { return (vi)select_vf(a > b, (vf)a, (vf)b); }

INLINE int32_t max_words(vi v) {
    FOLD(v, larger_words);
    return v[0];
}

/* e^x to about 2 ulp: 2^n * p(r) with r in [-ln2/2, ln2/2]; Cephes' expf polynomial. 0 below -87, for -inf too. */
INLINE vf exp_vf(vf x) {
    vi low = x < -87.0f;
    vf clipped = select_vf(low, splat(-87.0f), select_vf(x > 88.0f, splat(88.0f), x));
    /* 1.5 * 2^23: the sum's low bits are round(x / ln 2). */
    vf shifted = multiply_add(clipped, splat(1.44269504088896341f), splat(12582912.0f));
    vi n = (vi)shifted - 0x4b400000;
    vf whole = shifted - 12582912.0f;
    vf r = multiply_add(whole, splat(-0.693359375f), clipped);
    r = multiply_add(whole, splat(2.12194440e-4f), r);
    vf p = multiply_add(r, splat(1.9875691500e-4f), splat(1.3981999507e-3f));
    p = multiply_add(p, r, splat(8.3334519073e-3f));
    p = multiply_add(p, r, splat(4.1665795894e-2f));
    p = multiply_add(p, r, splat(1.6666665459e-1f));
    p = multiply_add(p, r, splat(5.0000001201e-1f));
    p = multiply_add(p, r * r, r) + 1.0f;
    vf scaled = p * (vf)((n + 127) << 23);
    return select_vf(low, (vf){0}, scaled);
}

/* Within 1e-7 of the true value; that is not few ulp near 0. */
INLINE vf tanh_vf(vf x) { return 1.0f - 2.0f / (1.0f + exp_vf(x + x)); }

#endif
