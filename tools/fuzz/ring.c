/* libFuzzer target for ring.h alone: both ends of a lane in one process, and an attacker who writes into their memory.
 *
 * The lane is one block of exactly its size, so that AddressSanitizer sees every access beside it. Until the first
 * damage what is taken must be what was put; afterwards the ends may poison the lane, but never read or write beside
 * it, take more than it holds, or go on for ever. The input is a list of operations; what lacks at its end is 0.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "ring.h"

enum { CAPACITY = 4096, SIZE = DATA + CAPACITY, LARGEST = CAPACITY / 8, NO_EVENT = -1 };
/* The numbers of lanes.py, which has two more: 7 counts in an eventfd, and its 9 attaches to the lane. */
enum { PUT, PUT_MANY, DRAIN, DRAIN_TOO, SET_WORD, SET_DATA, FLIP, COUNT, SLEEP, RESET, ADD_WORD, SET_HEADER, OPERATIONS };

typedef struct {
    const uint8_t *at, *end;
} input;

typedef struct {
    uint8_t *lane, *bell;
    ring_out out;
    ring_in in;
    int damaged;
    uint32_t put, taken, lengths[CAPACITY];
} state;

static const int HOT[] = {0,   8,   16,  24,  32,  48,  INCARNATION, TAIL, HEAD, SPACE_WANTED, STATE, PUTS, FULL_EVENTS,
                          656, LEFT_BACKLOG, GETS, 776, FOUND_BACKLOG};

static uint64_t number(input *in, int bytes) {
    uint64_t value = 0;
    for (int i = 0; i < bytes; i++)
        if (in->at < in->end) value |= (uint64_t)*in->at++ << 8 * (i & 7);
    return value;
}

static void fail(const char *what) {
    fprintf(stderr, "ring: %s\n", what);
    abort();
}

/* One record of `length` bytes, all of them its number; as place_object in _ring.c. */
static enum placed put_one(state *s, uint64_t *tail, uint64_t length, uint64_t kind) {
    uint8_t payload[LARGEST];
    memset(payload, (int)(s->put & 255), length);
    enum placed result = place(&s->out, tail, payload, length, kind);
    if (result == CORRUPT) {
        if (!s->damaged) fail("an untouched lane was found corrupt by its producer");
        poison(s->lane, NO_EVENT);
    }
    if (result == PLACED && !s->damaged) s->lengths[s->put++ % CAPACITY] = (uint32_t)length;
    return result;
}

static void put(state *s, input *in, int operation) {
    uint64_t kind = operation == PUT ? 1 + number(in, 1) % KIND_LAST : 1;
    uint64_t left = operation == PUT ? 1 : number(in, 1) % 16, done = 0, tail;
    uint32_t before = s->put;
    enum placed result = PLACED;
    int usable = out_state(&s->out) == OPEN;
    for (tail = LOAD(U64(s->lane, TAIL)); left && usable && result == PLACED; left--) {
        uint64_t length = operation == PUT ? number(in, 2) % (LARGEST + 1) : number(in, 1);
        result = put_one(s, &tail, length, kind);
        done += result == PLACED;
    }
    if (result == CORRUPT)
        s->put = before; /* nothing of it becomes visible */
    else if (done)
        publish(&s->out, tail, done);
}

static void drain(state *s, uint64_t budget) {
    uint64_t head, tail, taken = 0, bytes = 0, sum = 0;
    record r;
    if (!open_batch(&s->in, &head, &tail)) return;
    uint64_t published = tail - head;
    while (taken < budget && next_record(&s->in, &head, tail, &r)) {
        if (r.length > LARGEST || r.kind < 1 || r.kind > KIND_LAST) fail("a record that no producer may write");
        for (uint32_t i = 0; i < r.length; i++) sum += r.payload[i];
        bytes += record_bytes(r.length);
        if (bytes > published || published > CAPACITY) fail("more was taken than was published");
        taken++;
        if (s->damaged) continue;
        if (s->taken == s->put) fail("a record that was never put");
        if (r.length != s->lengths[s->taken % CAPACITY]) fail("a record of another length");
        if (sum != (uint64_t)(s->taken & 255) * r.length) fail("a record of other bytes");
        s->taken++;
        sum = 0;
    }
    close_batch(&s->in, head, tail, taken);
    if (!s->damaged && is_poisoned(&s->in)) fail("an untouched lane was poisoned");
    if (!s->damaged && taken < budget && s->taken != s->put) fail("records are left behind");
}

static void reset(state *s) { /* as Lane.reset: what the supervisor does while neither side uses the lane */
    STORE(U64(s->lane, TAIL), 0);
    STORE(U64(s->lane, HEAD), 0);
    STORE(U32(s->lane, SPACE_WANTED), 0);
    STORE(U32(s->lane, STATE), OPEN);
    STORE(U64(s->lane, INCARNATION), s->out.incarnation + 1);
    s->damaged = 0;
    s->put = s->taken = 0;
}

static void write_word(state *s, uint64_t at, uint64_t word) { memcpy(s->lane + at, &word, sizeof word); }

static void damage(state *s, input *in, int operation) {
    s->damaged = 1;
    if (operation == FLIP) {
        uint64_t bit = number(in, 2) % (8 * SIZE);
        s->lane[bit / 8] ^= (uint8_t)(1 << bit % 8);
    } else if (operation == SET_DATA) {
        uint64_t at = 8 * (number(in, 2) % (CAPACITY / 8));
        write_word(s, DATA + at, number(in, 8));
    } else if (operation == SET_HEADER) { /* of one of the records that are read next */
        uint64_t at = (LOAD(U64(s->lane, HEAD)) + 8 * number(in, 1)) % CAPACITY & ~(uint64_t)7;
        uint64_t length = number(in, 2);
        write_word(s, DATA + at, length | (number(in, 1) & 15) << 32);
    } else {
        uint64_t at = (uint64_t)HOT[number(in, 1) % (sizeof HOT / sizeof *HOT)], word = 0;
        if (operation == ADD_WORD) memcpy(&word, s->lane + at, sizeof word);
        write_word(s, at, word + (operation == ADD_WORD ? (uint64_t)(int16_t)number(in, 2) : number(in, 8)));
    }
}

static void one_operation(state *s, input *in) {
    int operation = (int)(number(in, 1) % OPERATIONS);
    if (operation <= PUT_MANY) put(s, in, operation);
    else if (operation <= DRAIN_TOO) drain(s, 1 + number(in, 1));
    else if (operation == COUNT) number(in, 9);
    else if (operation == SLEEP) STORE(U32(s->bell, PARKED), !has_records(&s->in));
    else if (operation == RESET) reset(s);
    else damage(s, in, operation);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return 1e6 * (double)t.tv_sec + 1e-3 * (double)t.tv_nsec;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static double slowest;
    double begin = now();
    input in = {data, data + size};
    state s = {.lane = calloc(1, SIZE), .bell = calloc(1, DATA)};
    s.out = (ring_out){.base = s.lane, .peer_bell = s.bell, .capacity = CAPACITY, .peer_event = NO_EVENT};
    s.in = (ring_in){.base = s.lane, .capacity = CAPACITY, .peer_event = NO_EVENT};
    reset(&s);
    while (in.at < in.end) one_operation(&s, &in);
    reset(&s); /* whatever was done to it, an emptied lane works again */
    input last = {(const uint8_t *)"\0\5\0", (const uint8_t *)"\0\5\0" + 3};
    put(&s, &last, PUT);
    drain(&s, 1);
    if (s.taken != 1) fail("an emptied lane does not work");
    free(s.lane);
    free(s.bell);
    double took = now() - begin;
    if (took > slowest) fprintf(stderr, "slowest input so far: %.0f us\n", slowest = took);
    return 0;
}
