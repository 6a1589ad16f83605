/* What the CPU kernels share. Every kernel computes a row (token) by a sequence of operations that depends on the
 * shapes of the weights alone: the result is bitwise the same whatever other rows are in the call, and on however many
 * threads it runs. */
#ifndef LIGHTLLM_MP_NATIVE_H
#define LIGHTLLM_MP_NATIVE_H

#include <stdint.h>

#define PANEL 32 /* output features that lie side by side in a packed weight */

enum dtype { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2, FLOAT8 = 3 };

/* Runs `run(arg, i)` for i in [0, tasks), in any order, on up to `set_threads` threads, the caller's included. */
void parallel_for(void (*run)(void *arg, long task), void *arg, long tasks);
int thread_count(void);
void set_threads(int count);

/* Projections. A packed weight holds panels of PANEL output features, zero filled at the end:
 *   float32   [panel][k][PANEL]
 *   bfloat16  [panel][k padded to 32, in pairs][PANEL][2], which is the order that AMX and VDPBF16PS want. */
struct gemm {
    const void *x;       /* [m, k] of `type` */
    const void *packed;  /* of `type` */
    const float *bias;   /* [n] or NULL */
    void *out;           /* [m, n] of `out_type` */
    long m, n, k;
    enum dtype type, out_type;
    long group;          /* of a FLOAT8 weight, see below */
};
long packed_bytes(long n, long k, enum dtype type);
void pack_weight(const void *weight, void *packed, long n, long k, enum dtype type);
int gemm_run(const struct gemm *g); /* 0, or -1 when memory for its scratch is lacking */

/* Weights of float8 e4m3 values, none of which is a NaN, with a scale below 128 for each output and `group` inputs, a
 * multiple of four. A panel has the values [k padded to 32, in fours][PANEL][4], then the scales times 2^120 as float32
 * [groups][PANEL]. Kernels expand some inputs of a panel at a time: to float32, or, where the level multiplies bfloat16 as
 * it is, rounded to that. */
long float8_bytes(long n, long k, long group);
void pack_float8(const uint8_t *values, const float *scales, void *packed, long n, long k, long group);

/* Quantised weights, for products with activations of 16 bits.
 *
 * A weight stands for scale * (code - zero), or scale * code + minimum. Outputs lie in panels of OUTPUTS, inputs in
 * blocks of INPUTS, each cut into GROUPS of four: the layout that instructions want which multiply the codes of many
 * outputs by the same inputs. A panel is a row of sections; a section is a head (see `enum scaling`) and `per`
 * blocks; a block is its planes of bits (see `enum codes`), then its steps, and those of minima.
 *   plane of 4 bits [4][OUTPUTS][4]   groups g (low half) and g + 4 (high half)
 *   plane of 2 bits [2][OUTPUTS][4]   groups 4 * i + j at bits 2 * j
 *   plane of 1 bit  [OUTPUTS][4]      group g at bit g */
#define OUTPUTS 16
#define INPUTS 32
#define GROUPS 8
#define GROUP_BYTES 64 /* OUTPUTS * 4 */

enum codes {
    CODES_2, /* plane of 2 */
    CODES_3, /* of 2, then 1 */
    CODES_4,
    CODES_5, /* of 4, then 1 */
    CODES_6, /* of 4, then 2 */
    CODES_8, /* [GROUPS][OUTPUTS][4] */
    CODES_TABLE, /* plane of 4: places in the table of values of IQ4_NL */
    CODES_E2M1   /* plane of 4: floats of 4 bits, places in the table of twice their values */
};
enum scaling {
    HALF,  /* head: float16 scale [OUTPUTS] */
    STEPS, /* head: float16 step [OUTPUTS]; block: int8 [subs][OUTPUTS], to be multiplied by the step */
    NIBBLES, /* as STEPS with STEPS_MINIMUM, but both in one byte, the minimum's in its high half */
    FLOAT, /* head: float32 scale [OUTPUTS] */
    EXPONENT /* head: uint8 e [OUTPUTS], for a scale of 2^(e - 128) */
};
enum minimum {
    NO_MINIMUM,
    HALF_MINIMUM,  /* head: float16 [OUTPUTS] */
    STEPS_MINIMUM, /* head: float16 step [OUTPUTS], negated; block: uint8 [subs][OUTPUTS] */
    ZERO_POINT     /* head: uint8 [OUTPUTS]: the minimum is -scale * it */
};

/* name, codes, scaling, minimum, scales of a block (each for INPUTS / subs inputs), zero, blocks of a section (0: given
 * with the weight), bytes of a section's head and of a block. */
#define EACH_FORMAT(X)                                          \
    X(Q4_0, CODES_4, HALF, NO_MINIMUM, 1, 8, 1, 32, 256)        \
    X(Q4_1, CODES_4, HALF, HALF_MINIMUM, 1, 0, 1, 64, 256)      \
    X(Q5_0, CODES_5, HALF, NO_MINIMUM, 1, 16, 1, 32, 320)       \
    X(Q5_1, CODES_5, HALF, HALF_MINIMUM, 1, 0, 1, 64, 320)      \
    X(Q8_0, CODES_8, HALF, NO_MINIMUM, 1, 128, 1, 32, 512)      \
    X(Q2_K, CODES_2, NIBBLES, STEPS_MINIMUM, 2, 0, 8, 64, 160)  \
    X(Q3_K, CODES_3, STEPS, NO_MINIMUM, 2, 4, 8, 32, 224)       \
    X(Q4_K, CODES_4, STEPS, STEPS_MINIMUM, 1, 0, 8, 64, 288)    \
    X(Q5_K, CODES_5, STEPS, STEPS_MINIMUM, 1, 0, 8, 64, 352)    \
    X(Q6_K, CODES_6, STEPS, NO_MINIMUM, 2, 32, 8, 32, 416)      \
    X(IQ4_NL, CODES_TABLE, HALF, NO_MINIMUM, 1, 128, 1, 32, 256) \
    X(IQ4_XS, CODES_TABLE, STEPS, NO_MINIMUM, 1, 128, 8, 32, 272) \
    X(ROWS_INT8, CODES_8, FLOAT, NO_MINIMUM, 1, 128, 0, 64, 512) \
    X(GROUPS_INT4, CODES_4, FLOAT, ZERO_POINT, 1, 0, 0, 80, 256) \
    X(MXFP4, CODES_E2M1, EXPONENT, NO_MINIMUM, 1, 128, 1, 16, 256)

#define FORMAT_NAME(name, ...) name,
enum format_name { EACH_FORMAT(FORMAT_NAME) FORMATS };

struct format {
    enum codes codes;
    enum scaling scaling;
    enum minimum minimum;
    int subs, zero, per, head, block;
};
extern const struct format formats[FORMATS];
extern const int8_t iq4_values[16], e2m1_values[16];

struct quantised { /* also an array of int64 in Python */
    int64_t packed, bias; /* addresses; bias: float32 [n] or NULL */
    int64_t n, format, per;
};
#define ROWS_FLOAT8 100 /* a format that stands alone: a FLOAT8 weight, `per` is its group */
long quantised_bytes(int format, long per, long n, long k);
/* Rows of ggml blocks; -1 for a type that has no format. */
int ggml_format(int ggml_type);
int pack_ggml(int ggml_type, const void *rows, long row_bytes, void *packed, long n, long k);
/* int8 [n, k] and float32 scales [n, k / (32 * per), rounded up]. */
void pack_int8(const int8_t *values, const float *scales, void *packed, long n, long k, long per);
/* Codes of 4 bits, one a byte [n, k], float32 scales and zero points (uint8) [n, k / (32 * per)]. */
void pack_grouped(const uint8_t *codes, const float *scales, const uint8_t *zeros, void *packed, long n, long k, long per);
/* Lines of weights that are stacked, as values: out [count, k] of `type`. */
void expand_rows(const struct quantised *parts, long k, const int64_t *rows, long count, void *out, enum dtype type);

struct rounded { /* rows of x as integers of 16 bits, each block of INPUTS with a scale */
    const void *x; /* [m, k] of `type` */
    long m, k, blocks;
    enum dtype type;
    int16_t *values; /* [m, blocks * INPUTS], zeros after k, each group in the order of the level's instructions */
    float *scales;   /* [m, blocks] */
    int32_t *sums;   /* [m, blocks, SUMS]: of the values of each half of a block, and of the WHOLE */
    float *weighted; /* [m, blocks, SUMS]: sums times the scale */
};
#define SUMS 3
#define WHOLE 2

struct product {
    const struct rounded *x;
    const struct quantised *w;
    void *out; /* [m, width], written from column `first` on */
    long width, first;
    enum dtype out_type;
};
/* x [m, k] times each of `count` weights, side by side in `out`; a weight of ROWS_FLOAT8 is alone. 0, or -1 when memory for its scratch is lacking. */
int quantised_run(const void *x, const struct quantised *weights, long count, void *out, long m, long k,
                  enum dtype type, enum dtype out_type);

/* Row-wise operations; all buffers are contiguous and of `type` unless said otherwise. */
void over_rows(void (*rows)(const void *job, long from, long to), const void *job, long m, long width);

struct norm {
    const void *x;      /* [m, n]; NULL: normalise `residual` alone */
    void *residual;     /* [m, n], x is added to it */
    const void *weight; /* [lines, n] of `weight_type`: row r takes line r % lines */
    const void *bias;   /* as `weight`, or NULL */
    const float *mean_squares; /* [m], in place of the rows' own; or NULL */
    void *out;          /* [m, n] */
    long m, n, lines;
    float eps;
    int centred;        /* the mean is subtracted first */
    enum dtype type, weight_type;
};
void norm_run(const struct norm *job);

struct squares { /* sums of squares of columns [first, first + n) */
    const void *x; /* [m, width] */
    float *out;    /* [m] */
    long m, width, first, n;
    enum dtype type;
};
void squares_run(const struct squares *job);

enum curve { SILU = 0, GELU = 1, GELU_TANH = 2, RELU = 3, QUICK_GELU = 4, SWIGLU_OAI = 5 /* gated only */ };

struct activation {
    const void *x; /* [m, 2 * n], the second half multiplies the activation of the first; or [m, n] */
    void *out;     /* [m, n] */
    long m, n;
    int gated;
    enum curve curve;
    enum dtype type;
};
void activation_run(const struct activation *job);

struct sigmoid_gate {
    const void *x;    /* [m, n] of `type` */
    const void *gate; /* [m, n] of `gate_type`, or with `single` [m] */
    void *out;        /* [m, n] of `type`: x * sigmoid(gate) */
    long m, n;
    int single;
    enum dtype type, gate_type;
};
void sigmoid_gate_run(const struct sigmoid_gate *job);

/* Mixture of experts. */
struct route {
    const float *logits;     /* [m, experts] */
    const float *correction; /* [experts], added to the weights for the choice alone; or NULL */
    float *weights;          /* [m, top_k] */
    int32_t *numbers;        /* [m, top_k] */
    long m, experts, top_k, groups, top_groups, group_best;
    int sigmoid, renormalise;
    float scale;
};
#define MAX_EXPERTS 1024
void route_run(const struct route *job);

struct experts {
    const void *x;             /* [m, k] */
    const void *gate_up, *down; /* [experts] packed weights of [2 * n, k] and [k, n] */
    const float *gate_up_bias, *down_bias; /* [experts, 2 * n] and [experts, k] for packed weights, or NULL */
    long gate_up_parts, down_parts; /* 0; or they are `struct quantised` [experts][parts], stacked */
    const float *weights;      /* [m, top_k] */
    const int32_t *numbers;    /* [m, top_k]; those outside 0 .. experts - 1 add nothing */
    void *out;                 /* [m, k] */
    long m, k, n, experts, top_k;
    enum curve curve;
    enum dtype type;
};
int experts_run(const struct experts *job); /* 0, or -1 when memory for its scratch is lacking */

#define ELSEWHERE (-1L)
struct mixing { /* the weighted sum of each token's experts */
    const float *each;    /* [m * top_k, k], in the order of `place` */
    const long *place;    /* [m * top_k]; those that are ELSEWHERE add nothing */
    const float *weights; /* [m, top_k] */
    void *out;            /* [m, k] */
    long k, top_k;
    enum dtype type;
};

struct heads {
    long heads, kv_heads, head_dim;
};

struct rotary {
    const void *qkv;           /* [m, (heads + 2 * kv_heads) * head_dim] */
    void *q;                   /* [m, heads * head_dim] */
    void *keys, *values;       /* [slots, kv_heads, head_dim] */
    const float *cos, *sin;    /* [positions, half] */
    const int32_t *positions;  /* [m] */
    const int32_t *slots;      /* [m] */
    long m, half;
    struct heads h;            /* head_dim: at most MAX_HEAD_DIM */
    enum dtype type, kv_type;  /* kv_type: INT8, FLOAT8, or as `type` */
    uint16_t *key_scales, *value_scales; /* float16 [slots, kv_heads], for 8 bits */
};
void rotary_run(const struct rotary *job);

struct attention {
    const void *q;              /* [m, heads * head_dim] */
    const void *keys, *values;  /* [slots, kv_heads, head_dim] */
    void *out;                  /* [m, heads * head_dim] */
    const int32_t *seq_start;   /* [sequences + 1] */
    const int32_t *context;     /* [sequences] */
    const int32_t *rows;        /* [sequences] */
    const int32_t *slot_table;  /* [rows, table_width] */
    const float *alibi;         /* [heads]: times (key position - query position), added to the score; or NULL */
    long sequences, table_width, max_query, window;
    float scale, softcap;       /* scores become softcap * tanh(score / softcap); 0: off */
    struct heads h; /* head_dim: a multiple of 16, at most MAX_HEAD_DIM */
    enum dtype type, kv_type;   /* kv_type: INT8, FLOAT8, or as `type` */
    const uint16_t *key_scales, *value_scales; /* float16 [slots, kv_heads], for 8 bits */
    long q_line, kv_line;       /* elements from one token of q to the next, and from one slot to the next */
    int full;                   /* every query sees every key of its sequence */
    const float *sinks;         /* [heads]: scores without a value, beside those of the keys; or NULL */
    const int32_t *visible;     /* [m]: leading keys that a query sees, if more than those up to itself; or NULL */
    int shared;                 /* all heads share one key-value head; h.kv_heads is into how many tasks they are divided */
    long value_dim;             /* components of a key that are its value (`shared`); 0: values are in `values` */
};
#define MAX_HEAD_DIM 576
#define ATTENTION_ROWS 32 /* of a task: query tokens times the query heads of a key-value head */
#ifndef ATTENTION_SEGMENT
#define ATTENTION_SEGMENT 2048 /* positions of keys that are summed up by themselves; a multiple of 64 */
#endif
#define ALL_SEGMENTS (-1)
struct task {
    long seq, query, count, kv_head;
};
void attention_run(const struct attention *job);

/* Linear attention by the gated delta rule; kernels/reference/gated_delta.py has the formulas. */
struct delta {
    const void *projected;        /* [m, channels + value_heads * value_dim]: queries, keys, values, then gates */
    const float *ba;              /* [m, 2 * value_heads] */
    const void *conv;             /* [taps, channels] */
    const float *decay, *dt_bias; /* [value_heads] */
    const float *norm;            /* [value_dim] */
    float *recurrent;             /* [places, value_heads, key_dim, value_dim] */
    void *inputs;                 /* [places, taps - 1, channels] */
    void *out;                    /* [m, value_heads * value_dim] */
    const int32_t *seq_start;     /* [sequences + 1] */
    const int32_t *rows;          /* [sequences] */
    const int32_t *saves;         /* [save_count, 3]: sequence, tokens, place, in ascending order */
    long sequences, save_count;
    long key_heads, value_heads, key_dim, value_dim, taps; /* dims: multiples of 16, at most MAX_DELTA_DIM */
    float eps;
    enum dtype type;
};
#define MAX_DELTA_DIM 256
#define MAX_TAPS 8
void delta_run(const struct delta *job);

/* The kernels of one level of instructions. Levels share the layout of packed weights. */
struct kernels {
    const char *name;
    int bf16_as_it_is; /* bfloat16 products take x in bfloat16, padded to 32; else in float32 */
    void (*widen)(const uint16_t *from, float *to, long m, long k, long padded_k);
    /* Rows [row, row + rows) of x times a panel, stored. */
    void (*float_panel)(const struct gemm *g, const void *x, long row, long rows, long panel);
    void (*bf16_panel)(const struct gemm *g, const void *x, long row, long rows, long panel);
    /* The same of float8 values, with x in float32, padded to 32; with x in bfloat16 as it is, where a level has that;
     * and a panel as one of bfloat16, for levels that have not. */
    void (*float8_panel)(const struct gemm *g, const void *x, long row, long rows, long panel);
    void (*float8_as_it_is)(const struct gemm *g, const void *x, long row, long rows, long panel);
    void (*expand_float8)(const void *panel, uint16_t *to, long k, long group);
    void (*round_rows)(const void *rounded, long from, long to);
    /* The same for `count` panels side by side, at most PANELS_AT_ONCE. */
    void (*quantised_panels)(const struct product *job, long row, long rows, long panel, long count);
    void (*norm_rows)(const void *norm, long from, long to);
    void (*squares_rows)(const void *squares, long from, long to);
    void (*activation_rows)(const void *activation, long from, long to);
    void (*gate_rows)(const void *sigmoid_gate, long from, long to);
    void (*delta_heads)(const struct delta *job, long seq, long key_head);
    void (*rotary_rows)(const void *rotary, long from, long to);
    void (*expert_weights)(const float *logits, float *to, long count, int by_sigmoid);
    void (*mix_rows)(const void *mixing, long from, long to);
    /* Query tokens [query, query + count) of sequence `seq`, all query heads of `kv_head`, over all their keys. Or over
     * those of one segment: then what they gather goes to `part`, [head_dim + 2, query heads] floats of one query token,
     * and join_parts makes the result of the parts of all segments, side by side in their order. */
    void (*attend)(const struct attention *job, struct task task, long segment, float *part);
    void (*join_parts)(const struct attention *job, struct task task, const float *parts, long segments);
};
extern const struct kernels *kernels; /* in use */
#define MAX_ROWS_AT_ONCE 128 /* rows of a call to a panel kernel */
#define PANELS_AT_ONCE 2

/* Older compilers do not know the extensions; Clang before 16 declares their intrinsics only where its command line names
 * them. */
#if defined(__clang__)
#define KNOWS_ARM_EXTENSIONS (__clang_major__ >= 16)
#else
#define KNOWS_ARM_EXTENSIONS (__GNUC__ >= 10)
#endif
#if defined(__aarch64__) && KNOWS_ARM_EXTENSIONS
#define WITH_ARM_LEVELS 1
#endif

/* A level fills the table, or replaces what it does better than the level below it. */
void baseline_level(struct kernels *to);
void avx2_level(struct kernels *to);
void avxvnni_level(struct kernels *to);
void avx512_level(struct kernels *to);
void avx512vnni_level(struct kernels *to);
void avx512bf16_level(struct kernels *to);
void amx_level(struct kernels *to);
void neon_level(struct kernels *to);
void dotprod_level(struct kernels *to);
void bf16_level(struct kernels *to);

/* Sets `*name` for level i where this processor has it, else NULL. 0 after the last level. */
int level_at(int i, const char **name);
int use_level(const char *name); /* 0, or -1 for one that this processor has not */
void use_best_level(void);

#endif
