/* Tasks that are shared among threads. */
#include "check.h"

static void count_task(void *arg, long task) { ((int *)arg)[task]++; }

void check_parallel(void) {
    const long most = 300;
    for (int round = 0; round < 100; round++) {
        long tasks = round < 10 ? round : below(most + 1);
        int *counts = make(most, sizeof *counts);
        memset(counts, 0, most * sizeof *counts);
        set_threads(1 + (int)below(5));
        parallel_for(count_task, counts, tasks);
        for (long i = 0; i < most; i++) CHECK(counts[i] == (i < tasks), "task %ld of %ld ran %d times", i, tasks, counts[i]);
        free_all();
    }
    set_threads(1);
}
