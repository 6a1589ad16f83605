/* The lock-free ring of a lane: single producer, single consumer, no Python. layout.py describes the memory layout.
 *
 * Memory orders that this file relies on. All are guaranteed by C11; none is specific to x86:
 *   publish   record bytes, then tail.store(release)    observe   tail.load(acquire), then record bytes
 *   release   copies taken, then head.store(release)    reuse     head.load(acquire), then new record bytes
 *   sleep     parked.store, FENCE, tail.load            wake      tail.store, FENCE, parked.load
 *   full      space_wanted.store, FENCE, head.load      space     head.store, FENCE, space_wanted.load
 * In the last two lines at least one side sees the other's store. Without the fences both may miss it, and a wake-up is
 * lost (tests/shm/test_race.py builds this file with RING_WITHOUT_FENCES and observes that).
 *
 * Values from shared memory are not trusted: each position and length is checked against the capacity before use, and a
 * record header is loaded only once. A violation poisons the lane.
 */
#ifndef LIGHTLLM_MP_RING_H
#define LIGHTLLM_MP_RING_H

#include <errno.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#ifdef RING_WITHOUT_FENCES
#define FENCE() atomic_signal_fence(memory_order_seq_cst)
#else
#define FENCE() atomic_thread_fence(memory_order_seq_cst)
#endif

_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2 && ATOMIC_INT_LOCK_FREE == 2, "a lane needs lock-free words");

enum { INCARNATION = 64, TAIL = 128, HEAD = 256, SPACE_WANTED = 384, STATE = 512, DATA = 4096 };
enum { PUTS = 640, FULL_EVENTS = 648, DOORBELLS = 656, LEFT_BACKLOG = 664 };
enum { GETS = 768, SPACE_DOORBELLS = 776, FOUND_BACKLOG = 784 };
enum { PARKED = 128, PARKS = 384, WAKES = 392 }; /* of a bell page */
enum { OPEN = 1, POISONED = 3, KIND_LAST = 5, KIND_PAD = 15 };
enum placed { PLACED, FULL, CORRUPT };

#define U64(base, at) ((_Atomic uint64_t *)((base) + (at)))
#define U32(base, at) ((_Atomic uint32_t *)((base) + (at)))
#define LOAD(word) atomic_load_explicit(word, memory_order_relaxed)
#define STORE(word, value) atomic_store_explicit(word, value, memory_order_relaxed)
#define ACQUIRE(word) atomic_load_explicit(word, memory_order_acquire)
#define RELEASE(word, value) atomic_store_explicit(word, value, memory_order_release)

typedef struct { /* the producing end */
    uint8_t *base, *peer_bell;
    uint64_t capacity, seen_head, incarnation;
    int peer_event;
} ring_out;

typedef struct { /* the consuming end */
    uint8_t *base;
    uint64_t capacity;
    int peer_event;
} ring_in;

typedef struct {
    const uint8_t *payload;
    uint32_t length, kind;
} record;

static inline void count(uint8_t *base, int at, uint64_t more) { /* a word with one writer */
    STORE(U64(base, at), LOAD(U64(base, at)) + more);
}

static inline void at_least(uint8_t *base, int at, uint64_t value) {
    if (value > LOAD(U64(base, at))) STORE(U64(base, at), value);
}

static inline void ring(int event_fd) {
    uint64_t one = 1; /* EAGAIN: the counter is full, so the bell rings already */
    while (write(event_fd, &one, sizeof one) < 0 && errno == EINTR) {}
}

static inline void poison(uint8_t *base, int peer_event) {
    if (atomic_exchange(U32(base, STATE), POISONED) != POISONED) ring(peer_event);
}

/* Bytes of a record: a header of 8 bytes, the payload, padding to 8 bytes. */
static inline uint64_t record_bytes(uint64_t length) { return (length + 15) & ~(uint64_t)7; }

/* ---- producer ---- */

static inline uint32_t out_state(ring_out *out) { /* also notices a reset by the supervisor */
    uint64_t incarnation = LOAD(U64(out->base, INCARNATION));
    if (incarnation != out->incarnation) {
        out->incarnation = incarnation;
        out->seen_head = ACQUIRE(U64(out->base, HEAD));
    }
    return LOAD(U32(out->base, STATE));
}

static inline int no_room(const ring_out *out, uint64_t tail, uint64_t need) {
    uint64_t used = tail - out->seen_head;
    return used > out->capacity || need > out->capacity - used;
}

/* PLACED: there is room for `need` bytes. FULL: there is not, and space_wanted is set. */
static inline enum placed make_room(ring_out *out, uint64_t tail, uint64_t need) {
    if (!no_room(out, tail, need)) return PLACED;
    out->seen_head = ACQUIRE(U64(out->base, HEAD));
    if (!no_room(out, tail, need)) return PLACED;
    STORE(U32(out->base, SPACE_WANTED), 1);
    FENCE();
    out->seen_head = ACQUIRE(U64(out->base, HEAD));
    if (tail - out->seen_head > out->capacity) return CORRUPT;
    if (no_room(out, tail, need)) {
        count(out->base, FULL_EVENTS, 1);
        at_least(out->base, LEFT_BACKLOG, tail - out->seen_head);
        return FULL;
    }
    STORE(U32(out->base, SPACE_WANTED), 0);
    return PLACED;
}

/* Copies one record to `tail` and advances it. The record is not visible yet. length <= capacity / 8. */
static inline enum placed place(ring_out *out, uint64_t *tail, const void *data, uint64_t length, uint64_t kind) {
    uint64_t size = record_bytes(length), offset = *tail & (out->capacity - 1), rest = out->capacity - offset;
    uint64_t pad = size <= rest ? 0 : rest;
    enum placed room = *tail & 7 ? CORRUPT : make_room(out, *tail, pad + size);
    if (room != PLACED) return room;
    uint64_t *at = (uint64_t *)(out->base + DATA + offset);
    if (pad) {
        *at = (pad - 8) | (uint64_t)KIND_PAD << 32;
        at = (uint64_t *)(out->base + DATA);
    }
    *at = length | kind << 32;
    memcpy(at + 1, data, length);
    *tail += pad + size;
    return PLACED;
}

/* Makes all placed records visible and, if the consumer sleeps, wakes it once. */
static inline void publish(ring_out *out, uint64_t tail, uint64_t records) {
    RELEASE(U64(out->base, TAIL), tail);
    count(out->base, PUTS, records);
    FENCE();
    if (LOAD(U32(out->peer_bell, PARKED)) && atomic_exchange(U32(out->peer_bell, PARKED), 0)) {
        count(out->base, DOORBELLS, 1);
        ring(out->peer_event);
    }
}

/* ---- consumer ---- */

static inline int is_poisoned(const ring_in *in) { return LOAD(U32(in->base, STATE)) == POISONED; }

static inline int has_records(const ring_in *in) {
    return ACQUIRE(U64(in->base, TAIL)) != LOAD(U64(in->base, HEAD)) && !is_poisoned(in);
}

/* Sets [head, tail), the bytes to read now. 0: there are none. */
static inline int open_batch(ring_in *in, uint64_t *head, uint64_t *tail) {
    *head = LOAD(U64(in->base, HEAD));
    *tail = ACQUIRE(U64(in->base, TAIL));
    if (*head == *tail || is_poisoned(in)) return 0;
    if (*tail - *head > in->capacity || (*head | *tail) & 7) return poison(in->base, in->peer_event), 0;
    at_least(in->base, FOUND_BACKLOG, *tail - *head);
    return 1;
}

/* The size of the record at `head`, or 0 if no correct producer writes it. */
static inline uint64_t checked_size(const ring_in *in, uint64_t head, uint64_t tail, uint64_t header) {
    uint64_t length = (uint32_t)header, kind = header >> 32, offset = head & (in->capacity - 1); /* kind, and flags */
    uint64_t size = record_bytes(length);
    if (size > tail - head || size > in->capacity - offset) return 0;
    if (kind == KIND_PAD) return offset + size == in->capacity && length % 8 == 0 ? size : 0;
    return kind >= 1 && kind <= KIND_LAST && length <= in->capacity / 8 ? size : 0;
}

/* Moves `head` past one record. 0: the batch ends, or the record is invalid and the lane is now poisoned. */
static inline int next_record(ring_in *in, uint64_t *head, uint64_t tail, record *found) {
    while (*head != tail) {
        const uint8_t *at = in->base + DATA + (*head & (in->capacity - 1));
        uint64_t header = LOAD((_Atomic uint64_t *)at);
        uint64_t size = checked_size(in, *head, tail, header);
        if (!size) return poison(in->base, in->peer_event), 0;
        *head += size;
        if (header >> 32 != KIND_PAD) {
            *found = (record){at + 8, (uint32_t)header, (uint32_t)(header >> 32)};
            return 1;
        }
    }
    return 0;
}

/* Releases the bytes up to `head`. Rings a waiting producer if half of the lane is free. */
static inline void close_batch(ring_in *in, uint64_t head, uint64_t tail, uint64_t taken) {
    RELEASE(U64(in->base, HEAD), head);
    count(in->base, GETS, taken);
    FENCE();
    _Atomic uint32_t *wanted = U32(in->base, SPACE_WANTED);
    if (LOAD(wanted) && tail - head <= in->capacity / 2 && atomic_exchange(wanted, 0)) {
        count(in->base, SPACE_DOORBELLS, 1);
        ring(in->peer_event);
    }
}

#endif
