/* What the CPU kernels share. Every kernel computes a row (token) by a sequence of operations that depends on the
 * shapes of the weights alone: the result is bitwise the same whatever other rows are in the call, and on however many
 * threads it runs. */
#ifndef LIGHTLLM_MP_NATIVE_H
#define LIGHTLLM_MP_NATIVE_H

#include <stdint.h>

#define PANEL 32 /* output features that lie side by side in a packed weight */

/* One compiled copy per instruction set, chosen by the dynamic linker. */
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__gnu_linux__)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#define HAVE_X86_KERNELS 1
#else
#define CLONES
#define HAVE_X86_KERNELS 0
#endif

enum dtype { FLOAT32 = 0, BFLOAT16 = 1 };

/* Runs `run(arg, i)` for i in [0, tasks), in any order, on up to `set_threads` threads, the caller's included. */
void parallel_for(void (*run)(void *arg, long task), void *arg, long tasks);
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
};
long packed_bytes(long n, long k, enum dtype type);
void pack_weight(const void *weight, void *packed, long n, long k, enum dtype type);
int gemm_run(const struct gemm *g); /* 0, or -1 when memory for its scratch is lacking */
void store_panel(const struct gemm *g, const float *sums, long row, long rows, long panel);

/* Kernels for particular instructions: 0 none, 1 AVX512-BF16, 2 AMX-BF16. */
int x86_level(void);
void gemm_avx512_bf16(const struct gemm *g, const uint16_t *x, long row, long rows, long panel);
void gemm_amx_bf16(const struct gemm *g, const uint16_t *x, long row, long rows, long panel);

/* Row-wise operations; all buffers are contiguous and of `type` unless said otherwise. */
void over_rows(void (*rows)(const void *job, long from, long to), const void *job, long m, long width);

struct norm {
    const void *x;      /* [m, n]; NULL: normalise `residual` alone */
    void *residual;     /* [m, n], x is added to it */
    const void *weight; /* [lines, n] of `weight_type`: row r takes line r % lines */
    const void *bias;   /* as `weight`, or NULL */
    void *out;          /* [m, n] */
    long m, n, lines;
    float eps;
    int centred;        /* the mean is subtracted first */
    enum dtype type, weight_type;
};
void norm_run(const struct norm *job);

enum curve { SILU = 0, GELU = 1, GELU_TANH = 2, RELU = 3 };

struct activation {
    const void *x; /* [m, 2 * n], the second half multiplies the activation of the first; or [m, n] */
    void *out;     /* [m, n] */
    long m, n;
    int gated;
    enum curve curve;
    enum dtype type;
};
void activation_run(const struct activation *job);

/* Mixture of experts. */
struct route {
    const float *logits; /* [m, experts] */
    float *weights;      /* [m, top_k] */
    int32_t *numbers;    /* [m, top_k] */
    long m, experts, top_k, groups, top_groups;
    int renormalise;
    float scale;
};
#define MAX_EXPERTS 1024
void route_run(const struct route *job);

struct experts {
    const void *x;             /* [m, k] */
    const void *gate_up, *down; /* [experts] packed weights of [2 * n, k] and [k, n] */
    const float *weights;      /* [m, top_k] */
    const int32_t *numbers;    /* [m, top_k] */
    void *out;                 /* [m, k] */
    long m, k, n, experts, top_k;
    enum curve curve;
    enum dtype type;
};
int experts_run(const struct experts *job); /* 0, or -1 when memory for its scratch is lacking */

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
    struct heads h;
    enum dtype type;
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
    enum dtype type;
};
#define MAX_HEAD_DIM 256
#define MAX_GROUP 32 /* query heads per key-value head */
void attention_run(const struct attention *job);
void attend_amx(const struct attention *job, long seq, long query, long count, long kv_head); /* head_dim: of 32 */

#endif
