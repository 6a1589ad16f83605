/* Which kernels this process uses: the best that the processor has, or those that LIGHTLLM_MP_CPU names. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "native.h"

struct level {
    const char *name;
    int (*is_here)(void);
    void (*fill)(struct kernels *to);
    int below; /* the level that it adds to, or -1 */
};

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ARCH_REQ_XCOMP_PERM 0x1023
#define XFEATURE_XTILEDATA 18

static int always(void) { return 1; }

static int avx2(void) {
    __builtin_cpu_init();
    unsigned a, b, c, d;
    int f16c = __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1);
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c;
}

static int avxvnni(void) {
    unsigned a, b, c, d;
    return avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}

static int avx512(void) {
    return avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

static int avx512vnni(void) { return avx512() && __builtin_cpu_supports("avx512vnni"); }
static int avx512bf16(void) { return avx512vnni() && __builtin_cpu_supports("avx512bf16"); }

/* The system gives a process tile registers when it asks for them. */
static int amx(void) {
    unsigned a, b, c, d;
    return avx512bf16() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1) && (d >> 24 & 1) &&
           syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

static const struct level levels[] = {
    {"baseline", always, baseline_level, -1},      {"avx2", avx2, avx2_level, -1},
    {"avxvnni", avxvnni, avxvnni_level, 1},        {"avx512", avx512, avx512_level, -1},
    {"avx512vnni", avx512vnni, avx512vnni_level, 3}, {"avx512bf16", avx512bf16, avx512bf16_level, 4},
    {"amx", amx, amx_level, 5},
};
#elif defined(__aarch64__)
#include <sys/auxv.h>

#define HAS_DOTPROD (1 << 20) /* of AT_HWCAP */
#define HAS_BF16 (1 << 14)    /* of AT_HWCAP2 */

static int always(void) { return 1; }

#ifdef WITH_ARM_LEVELS
static int dotprod(void) { return (getauxval(AT_HWCAP) & HAS_DOTPROD) != 0; }
static int bf16(void) { return dotprod() && (getauxval(AT_HWCAP2) & HAS_BF16) != 0; }
#endif

static const struct level levels[] = {
    {"neon", always, neon_level, -1},
#ifdef WITH_ARM_LEVELS
    {"dotprod", dotprod, dotprod_level, 0},
    {"bf16", bf16, bf16_level, 1},
#endif
};
#else
static int always(void) { return 1; }

static const struct level levels[] = {{"baseline", always, baseline_level, -1}};
#endif

#define LEVELS ((int)(sizeof levels / sizeof *levels))

static struct kernels table;
const struct kernels *kernels = &table;

int level_at(int i, const char **name) {
    if (i >= LEVELS) return 0;
    *name = levels[i].is_here() ? levels[i].name : NULL;
    return 1;
}

static void fill(const struct level *level) {
    if (level->below >= 0) fill(&levels[level->below]);
    level->fill(&table);
    table.name = level->name;
}

int use_level(const char *name) {
    for (int i = 0; i < LEVELS; i++)
        if (strcmp(levels[i].name, name) == 0 && levels[i].is_here()) {
            fill(&levels[i]);
            return 0;
        }
    return -1;
}

void use_best_level(void) {
    for (int i = LEVELS - 1; i >= 0; i--)
        if (levels[i].is_here()) {
            fill(&levels[i]);
            return;
        }
}
