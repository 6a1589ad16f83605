/* Names the levels of instructions that the processor has, then runs every check: `check [level ...]`, all if none. */
#include "check.h"

#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#define MOST_WORDS 20 /* of failures */
#define MOST_BUFFERS 256

long checks, failures;

void count_check(int holds, const char *file, int line, const char *format, ...) {
    checks++;
    if (holds || failures++ >= MOST_WORDS) return;
    va_list args;
    va_start(args, format);
    printf("%s:%d: %s: ", file, line, kernels->name);
    vprintf(format, args);
    printf("\n");
    va_end(args);
}

static struct {
    char *start;
    long bytes;
} buffers[MOST_BUFFERS];
static int buffers_in_use;

#ifdef __SANITIZE_ADDRESS__
static char *begin_buffer(long bytes) { return buffers[buffers_in_use].start = malloc(bytes ? bytes : 1); }
static void end_buffer(int i) { free(buffers[i].start); }
#else
/* The buffer ends where a page without access begins. */
static char *begin_buffer(long bytes) {
    long page = sysconf(_SC_PAGESIZE), whole = (bytes + page - 1) / page * page;
    char *start = mmap(NULL, whole + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED || mprotect(start + whole, page, PROT_NONE) != 0) return NULL;
    buffers[buffers_in_use].start = start;
    buffers[buffers_in_use].bytes = whole + page;
    return start + whole - bytes;
}
static void end_buffer(int i) { munmap(buffers[i].start, buffers[i].bytes); }
#endif

void *make(long count, long size) {
    char *p = buffers_in_use < MOST_BUFFERS ? begin_buffer(count * size) : NULL;
    if (p == NULL) {
        printf("no memory for a buffer\n");
        exit(2);
    }
    buffers_in_use++;
    return memset(p, 0xff, count * size);
}

void free_all(void) {
    while (buffers_in_use > 0) end_buffer(--buffers_in_use);
}

static uint64_t state;

static uint32_t next(void) { /* xorshift64* */
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (uint32_t)(state * 0x2545f4914f6cdd1du >> 32);
}

long below(long limit) { return next() % limit; }
float uniform(void) { return (float)(next() >> 8) * 0x1p-23f - 1.0f; }

long size_of(enum dtype type) { return type == FLOAT32 ? 4 : type == BFLOAT16 ? 2 : 1; }

double get(const void *p, long i, enum dtype type) {
    uint32_t bits = type == BFLOAT16 ? (uint32_t)((const uint16_t *)p)[i] << 16 : ((const uint32_t *)p)[i];
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

void put(void *p, long i, double value, enum dtype type) {
    float f = (float)value;
    uint32_t bits;
    memcpy(&bits, &f, 4);
    if (type == FLOAT32)
        ((uint32_t *)p)[i] = bits;
    else
        ((uint16_t *)p)[i] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

void *random_values(long count, enum dtype type, float scale) {
    void *p = make(count, size_of(type));
    for (long i = 0; i < count; i++) put(p, i, uniform() * scale, type);
    return p;
}

double half_value(uint16_t half) {
    int exponent = half >> 10 & 31, fraction = half & 1023;
    double size = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
    return half & 0x8000 ? -size : size;
}

double e4m3_value(uint8_t byte) {
    int exponent = byte >> 3 & 15, fraction = byte & 7;
    double size = exponent ? ldexp(8 + fraction, exponent - 10) : ldexp(fraction, -9);
    return byte & 0x80 ? -size : size;
}

double rounding(double magnitude, enum dtype type) {
    return fabs(magnitude) * (type == BFLOAT16 ? 0x1.01p-8 : 0) + fabs(magnitude) * 0x1p-20 + 1e-30;
}

static void check_level(const char *name) {
    checks = 0;
    state = 0x9e3779b97f4a7c15u;
    use_level(name);
    check_parallel();
    check_products();
    check_quantised();
    check_rows();
    check_attention();
    check_delta();
    printf("%s: %ld checks\n", name, checks);
    fflush(stdout);
}

static int is_wanted(const char *name, int count, char **words) {
    for (int i = 1; i < count; i++)
        if (strcmp(words[i], name) == 0) return 1;
    return count == 1;
}

int main(int count, char **words) {
    const char *name;
    printf("levels:");
    for (int i = 0; level_at(i, &name); i++)
        if (name) printf(" %s", name);
    printf("\n");
    for (int i = 0; level_at(i, &name); i++)
        if (name && is_wanted(name, count, words)) check_level(name);
    if (failures) printf("%ld checks failed\n", failures);
    return failures ? 1 : 0;
}
