/* Work sharing among a few threads of our own, made for cores that other processes want too.
 *
 * A caller never waits for a helper that has not begun: if the helpers are not scheduled, it does all tasks itself.
 * (An OpenMP region ends with a barrier for every thread of the team; on a machine whose cores are taken by the other
 * actors, one region then costs a time slice, not microseconds.)
 *
 * Publishing: the caller writes the job, then `open` = its generation, then `generation`. A helper that sees a new
 * generation adds itself to `inside`, and runs tasks only if `open` still is that generation. Closing: the caller sets
 * `open` = 0, then waits for `inside` to become 0. Both orders are sequentially consistent, so either the helper sees
 * the job closed or the caller sees the helper inside. */
#include "native.h"

#include <stdatomic.h>
#include <stddef.h>

static void run_all(void (*run)(void *, long), void *arg, long tasks) {
    for (long i = 0; i < tasks; i++) run(arg, i);
}

#ifdef __linux__
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

/* glibc 2.32 and 2.34 gave these functions a new version when they moved from libpthread into libc. The old version names
 * the same functions, so a wheel that is built with this macro (scripts/build_wheel.sh) also loads where glibc is older:
 * there every Python has libpthread loaded. */
#if defined(LIGHTLLM_MP_OLD_GLIBC) && (defined(__x86_64__) || defined(__aarch64__))
#ifdef __x86_64__
#define FIRST_VERSION "GLIBC_2.2.5"
#else
#define FIRST_VERSION "GLIBC_2.17"
#endif
__asm__(".symver pthread_create, pthread_create@" FIRST_VERSION);
__asm__(".symver pthread_sigmask, pthread_sigmask@" FIRST_VERSION);
__asm__(".symver pthread_attr_setstacksize, pthread_attr_setstacksize@" FIRST_VERSION);
#endif

#define MAX_THREADS 256
#define SPINS 2000 /* looks at a flag before sleeping: some tens of microseconds, the gap between two ops of a step */

/* Each thread takes the tasks of a part of its own first, in order: what they read lies side by side. Then it helps with
 * the other parts. */
struct part {
    atomic_long next;
    long end;
} __attribute__((aligned(64)));

static struct {
    void (*run)(void *, long);
    void *arg;
    int parts;
    struct part part[MAX_THREADS];
} job;
static atomic_uint generation, open_job, inside, asleep, caller_waits;
static atomic_flag busy = ATOMIC_FLAG_INIT;
static int threads = 1, helpers;

static void pause_cpu(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void wait_while(atomic_uint *word, unsigned value) { syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL); }
static void wake(atomic_uint *word, int count) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count); }

static void claim(int thread) {
    for (int i = 0; i < job.parts; i++) {
        struct part *part = &job.part[(thread + i) % job.parts];
        long task;
        while ((task = atomic_fetch_add_explicit(&part->next, 1, memory_order_relaxed)) < part->end) job.run(job.arg, task);
    }
}

static unsigned next_generation(unsigned seen) {
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load(&generation) != seen) return atomic_load(&generation);
        pause_cpu();
    }
    atomic_fetch_add(&asleep, 1);
    while (atomic_load(&generation) == seen) wait_while(&generation, seen);
    atomic_fetch_sub(&asleep, 1);
    return atomic_load(&generation);
}

static struct helper {
    int thread; /* the caller is thread 0 */
    unsigned seen;
} helper[MAX_THREADS];

static void *help(void *arg) {
    int thread = ((struct helper *)arg)->thread;
    unsigned seen = ((struct helper *)arg)->seen;
    for (;;) {
        seen = next_generation(seen);
        atomic_fetch_add(&inside, 1);
        if (atomic_load(&open_job) == seen) claim(thread);
        if (atomic_fetch_sub(&inside, 1) == 1 && atomic_load(&caller_waits)) wake(&inside, 1);
    }
    return NULL;
}

/* Helpers take no signals: those belong to the program's own threads. */
static void start_helpers(void) {
    sigset_t all, before;
    pthread_attr_t attributes;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, 4 << 20);
    for (; helpers < threads - 1; helpers++) {
        pthread_t thread;
        helper[helpers] = (struct helper){helpers + 1, atomic_load(&generation)};
        if (pthread_create(&thread, &attributes, help, &helper[helpers]) != 0) break;
    }
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void set_threads(int count) { threads = count < 1 ? 1 : count > MAX_THREADS ? MAX_THREADS : count; }

static void wait_for_helpers(void) {
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load(&inside) == 0) return;
        pause_cpu();
    }
    atomic_store(&caller_waits, 1); /* sleeping frees this core for a helper that lost its own in mid-task */
    unsigned left;
    while ((left = atomic_load(&inside)) != 0) wait_while(&inside, left);
    atomic_store(&caller_waits, 0);
}

int thread_count(void) { return threads; }

void parallel_for(void (*run)(void *, long), void *arg, long tasks) {
    if (threads == 1 || tasks < 2 || atomic_flag_test_and_set(&busy)) {
        run_all(run, arg, tasks);
        return;
    }
    if (helpers < threads - 1) start_helpers();
    job.run = run;
    job.arg = arg;
    job.parts = tasks < threads ? (int)tasks : threads;
    for (int i = 0; i < job.parts; i++) {
        atomic_store_explicit(&job.part[i].next, tasks * i / job.parts, memory_order_relaxed);
        job.part[i].end = tasks * (i + 1) / job.parts;
    }
    unsigned mine = atomic_load(&generation) + 1;
    if (mine == 0) mine = 1; /* 0 means closed */
    atomic_store(&open_job, mine);
    atomic_store(&generation, mine);
    if (atomic_load(&asleep)) wake(&generation, helpers);
    claim(0);
    atomic_store(&open_job, 0);
    wait_for_helpers();
    atomic_flag_clear(&busy);
}

#else
void set_threads(int count) { (void)count; }
int thread_count(void) { return 1; }
void parallel_for(void (*run)(void *, long), void *arg, long tasks) { run_all(run, arg, tasks); }
#endif
