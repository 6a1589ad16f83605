/* Python classes for the two ends of a lane. ring.h has all accesses to shared memory. */
#define Py_LIMITED_API 0x030b0000
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>
#include <poll.h>
#include <sched.h>
#include <time.h>

#include "ring.h"

enum { CHECKS_PER_YIELD = 32 };

static PyObject *closed(const char *text) {
    PyObject *module = PyImport_ImportModule("lightllm_mp.shm.errors");
    PyObject *type = module ? PyObject_GetAttrString(module, "LaneClosed") : NULL;
    if (type) PyErr_SetString(type, text); /* the text becomes EngineError.message */
    Py_XDECREF(type);
    Py_XDECREF(module);
    return NULL;
}

static void *new_object(PyTypeObject *type) { return ((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0); }

static void free_object(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

/* The last of `most` arguments is optional and may be given by name. Returns the number of arguments, or -1. */
static Py_ssize_t arguments(Py_ssize_t n, PyObject *names, Py_ssize_t most, const char *last) {
    Py_ssize_t named = names ? PyTuple_Size(names) : 0, all = n + named;
    int right = !named || (named == 1 && PyUnicode_CompareWithASCIIString(PyTuple_GetItem(names, 0), last) == 0);
    if (right && all <= most && all >= most - 1 && n >= most - 1) return all;
    PyErr_Format(PyExc_TypeError, "takes %zd arguments, the last (%s) is optional", most, last);
    return -1;
}

/* ---- Producer ---- */

typedef struct {
    PyObject_HEAD
    Py_buffer lane, bell; /* bell: the consumer's page */
    ring_out out;         /* out.base is NULL after close */
} Producer;

static int place_object(ring_out *out, uint64_t *tail, PyObject *data, uint64_t kind) {
    Py_buffer view;
    int result = -1;
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0) return -1;
    if ((uint64_t)view.len > out->capacity / 8)
        PyErr_Format(PyExc_ValueError, "a record of %zd bytes does not fit: the lane takes %zd", view.len,
                     (Py_ssize_t)(out->capacity / 8));
    else
        result = (int)place(out, tail, view.buf, (uint64_t)view.len, kind);
    PyBuffer_Release(&view);
    if (result == CORRUPT) {
        poison(out->base, out->peer_event);
        closed("the lane is poisoned: its positions are impossible");
        return -1;
    }
    return result;
}

/* The kind as a number, or 0 with an exception: a wrong kind, a closed sender or a closed lane. */
static uint64_t checked_kind(ring_out *out, PyObject *kind) {
    if (!out->base) return PyErr_SetString(PyExc_ValueError, "this sender is closed"), 0;
    uint32_t state = out_state(out);
    long value = kind ? PyLong_AsLong(kind) : 1;
    if (value == -1 && PyErr_Occurred()) return 0;
    if (value < 1 || value > KIND_LAST) return PyErr_Format(PyExc_ValueError, "no such record kind: %ld", value), 0;
    if (state == OPEN) return (uint64_t)value;
    closed(state == POISONED ? "the lane is poisoned" : "the lane is closed");
    return 0;
}

static PyObject *producer_try_put(PyObject *self, PyObject *const *args, Py_ssize_t n, PyObject *names) {
    ring_out *out = &((Producer *)self)->out;
    Py_ssize_t given = arguments(n, names, 2, "kind");
    uint64_t kind = given < 0 ? 0 : checked_kind(out, given == 2 ? args[1] : NULL);
    if (!kind) return NULL;
    uint64_t tail = LOAD(U64(out->base, TAIL));
    int result = place_object(out, &tail, args[0], kind);
    if (result < 0) return NULL;
    if (result == PLACED) publish(out, tail, 1);
    return PyBool_FromLong(result == PLACED);
}

static PyObject *producer_put_many(PyObject *self, PyObject *const *args, Py_ssize_t n, PyObject *names) {
    ring_out *out = &((Producer *)self)->out;
    Py_ssize_t given = arguments(n, names, 2, "kind"), done = 0;
    uint64_t kind = given < 0 ? 0 : checked_kind(out, given == 2 ? args[1] : NULL);
    Py_ssize_t total = kind ? PySequence_Size(args[0]) : -1;
    if (total < 0) return NULL;
    uint64_t tail = LOAD(U64(out->base, TAIL));
    int result = PLACED;
    while (result == PLACED && done < total) {
        PyObject *item = PySequence_GetItem(args[0], done);
        result = item ? place_object(out, &tail, item, kind) : -1;
        Py_XDECREF(item);
        done += result == PLACED;
    }
    if (result < 0) return NULL; /* no record of this call becomes visible */
    if (done) publish(out, tail, (uint64_t)done);
    return PyLong_FromSsize_t(done);
}

static PyObject *producer_close(PyObject *self, PyObject *unused) {
    Producer *p = (Producer *)self;
    if (p->out.base) {
        p->out.base = NULL;
        PyBuffer_Release(&p->lane);
        PyBuffer_Release(&p->bell);
    }
    Py_RETURN_NONE;
}

static PyObject *producer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    PyObject *lane, *bell;
    int event;
    if (!PyArg_ParseTuple(args, "OOi", &lane, &bell, &event)) return NULL;
    Producer *p = new_object(type);
    if (!p) return NULL;
    if (PyObject_GetBuffer(lane, &p->lane, PyBUF_WRITABLE) < 0) return Py_DecRef((PyObject *)p), NULL;
    if (PyObject_GetBuffer(bell, &p->bell, PyBUF_WRITABLE) < 0) {
        PyBuffer_Release(&p->lane);
        return Py_DecRef((PyObject *)p), NULL;
    }
    uint8_t *base = p->lane.buf;
    p->out = (ring_out){.base = base, .peer_bell = p->bell.buf, .capacity = (uint64_t)p->lane.len - DATA,
                        .peer_event = event, .incarnation = LOAD(U64(base, INCARNATION)),
                        .seen_head = ACQUIRE(U64(base, HEAD))};
    return (PyObject *)p;
}

static void producer_dealloc(PyObject *self) {
    Py_DecRef(producer_close(self, NULL));
    free_object(self);
}

/* ---- Consumer ---- */

typedef struct {
    Py_buffer view;
    ring_in in;
} Source;

typedef struct {
    PyObject_HEAD
    Py_buffer bell; /* the consumer's own page */
    Source *sources;
    Py_ssize_t count, next;
    int event;
} Consumer;

static int ready(Consumer *c) {
    for (Py_ssize_t i = 0; i < c->count; i++)
        if (has_records(&c->sources[i].in)) return 1;
    return 0;
}

static int append(PyObject *list, Py_ssize_t index, const record *r) {
    PyObject *triple = PyTuple_New(3);
    if (!triple) return -1;
    PyObject *items[3] = {PyLong_FromSsize_t(index), PyLong_FromLong((long)r->kind),
                          PyBytes_FromStringAndSize((const char *)r->payload, (Py_ssize_t)r->length)};
    int failed = !items[0] || !items[1] || !items[2];
    for (int i = 0; i < 3; i++) PyTuple_SetItem(triple, i, items[i]);
    failed = failed || PyList_Append(list, triple) < 0;
    Py_DecRef(triple);
    return failed ? -1 : 0;
}

/* Appends at most `budget` records of one lane to `list`. Returns their number, or -1 with an exception. */
static Py_ssize_t take(ring_in *in, Py_ssize_t index, Py_ssize_t budget, PyObject *list) {
    uint64_t head, tail;
    Py_ssize_t taken = 0;
    record r;
    int failed = 0;
    if (!open_batch(in, &head, &tail)) return 0;
    while (taken < budget && !failed && next_record(in, &head, tail, &r)) {
        failed = append(list, index, &r);
        taken++;
    }
    close_batch(in, head, tail, (uint64_t)taken);
    return failed ? -1 : taken;
}

static PyObject *consumer_drain(PyObject *self, PyObject *const *args, Py_ssize_t n, PyObject *names) {
    Consumer *c = (Consumer *)self;
    Py_ssize_t given = arguments(n, names, 1, "max"), left = given == 1 ? PyLong_AsSsize_t(args[0]) : 256;
    PyObject *list = given < 0 || (left == -1 && PyErr_Occurred()) ? NULL : PyList_New(0);
    if (!list) return NULL;
    Py_ssize_t share = c->count ? (left + c->count - 1) / c->count : 0;
    int more = c->count && left > 0;
    while (more) {
        more = 0;
        for (Py_ssize_t i = 0; i < c->count && left > 0; i++) {
            Py_ssize_t budget = share < left ? share : left;
            Py_ssize_t taken = take(&c->sources[c->next].in, c->next, budget, list);
            if (taken < 0) return Py_DecRef(list), NULL;
            c->next = (c->next + 1) % c->count;
            left -= taken;
            more |= taken == budget && left > 0;
        }
    }
    return list;
}

static int park(Consumer *c) {
    _Atomic uint32_t *parked = U32((uint8_t *)c->bell.buf, PARKED);
    STORE(parked, 1);
    FENCE();
    if (ready(c)) return STORE(parked, 0), 0;
    count(c->bell.buf, PARKS, 1);
    return 1;
}

static void unpark(Consumer *c) {
    uint64_t rings;
    STORE(U32((uint8_t *)c->bell.buf, PARKED), 0);
    while (read(c->event, &rings, sizeof rings) < 0 && errno == EINTR) {}
    count(c->bell.buf, WAKES, 1);
}

static int is_open(Consumer *c) {
    if (!c->bell.obj) PyErr_SetString(PyExc_ValueError, "this inbox is closed");
    return c->bell.obj != NULL;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int spin(Consumer *c, double until) { /* yields the CPU: the peer may need it to send */
    do {
        for (int i = 0; i < CHECKS_PER_YIELD; i++)
            if (ready(c)) return 1;
        sched_yield();
    } while (now() < until);
    return 0;
}

/* Sleeps on the own eventfd; without limit if `until` < 0. 1: the bell rang. 0: timeout. -1: an exception, perhaps of a
 * signal handler. */
static int doze(Consumer *c, double until) {
    for (;;) {
        struct pollfd set = {c->event, POLLIN, 0};
        double seconds = until < 0 ? 0 : until - now();
        struct timespec left = {0, 0};
        int result, error;
        if (seconds > 0) left.tv_sec = (time_t)seconds;
        if (seconds > 0) left.tv_nsec = (long)(1e9 * (seconds - (double)left.tv_sec));
        Py_BEGIN_ALLOW_THREADS
        result = ppoll(&set, 1, until < 0 ? NULL : &left, NULL);
        error = errno;
        Py_END_ALLOW_THREADS
        if (result >= 0) return result;
        if (error != EINTR) return errno = error, PyErr_SetFromErrno(PyExc_OSError), -1;
        if (PyErr_CheckSignals() < 0) return -1;
    }
}

static PyObject *consumer_wait(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"timeout", "spin_us", NULL};
    Consumer *c = (Consumer *)self;
    PyObject *timeout = Py_None;
    double spin_us = 0, until = -1;
    int found = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|Od:wait", names, &timeout, &spin_us)) return NULL;
    if (!is_open(c)) return NULL;
    if (ready(c)) Py_RETURN_TRUE;
    if (timeout != Py_None) {
        double seconds = PyFloat_AsDouble(timeout);
        if (PyErr_Occurred()) return NULL;
        until = now() + (seconds > 0 ? seconds : 0);
    }
    if (spin_us > 0) {
        Py_BEGIN_ALLOW_THREADS
        found = spin(c, now() + 1e-6 * spin_us);
        Py_END_ALLOW_THREADS
    }
    if (found || !park(c)) Py_RETURN_TRUE;
    int rung = doze(c, until);
    unpark(c);
    return rung < 0 ? NULL : PyBool_FromLong(rung || ready(c));
}

static PyObject *consumer_park(PyObject *self, PyObject *unused) {
    return is_open((Consumer *)self) ? PyBool_FromLong(park((Consumer *)self)) : NULL;
}

static PyObject *consumer_unpark(PyObject *self, PyObject *unused) {
    if (!is_open((Consumer *)self)) return NULL;
    unpark((Consumer *)self);
    Py_RETURN_NONE;
}

static PyObject *consumer_add(PyObject *self, PyObject *args) {
    Consumer *c = (Consumer *)self;
    PyObject *lane;
    Source s;
    if (!PyArg_ParseTuple(args, "Oi", &lane, &s.in.peer_event)) return NULL;
    Source *sources = PyMem_Realloc(c->sources, (size_t)(c->count + 1) * sizeof(Source));
    if (!sources) return PyErr_NoMemory();
    c->sources = sources;
    if (PyObject_GetBuffer(lane, &s.view, PyBUF_WRITABLE) < 0) return NULL;
    s.in.base = s.view.buf;
    s.in.capacity = (uint64_t)s.view.len - DATA;
    sources[c->count] = s;
    return PyLong_FromSsize_t(c->count++);
}

static PyObject *consumer_close(PyObject *self, PyObject *unused) {
    Consumer *c = (Consumer *)self;
    while (c->count) PyBuffer_Release(&c->sources[--c->count].view);
    c->next = 0;
    if (c->bell.obj) PyBuffer_Release(&c->bell); /* clears bell.obj */
    Py_RETURN_NONE;
}

static PyObject *consumer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    PyObject *bell;
    int event;
    if (!PyArg_ParseTuple(args, "Oi", &bell, &event)) return NULL;
    Consumer *c = new_object(type);
    if (!c) return NULL;
    c->event = event;
    if (PyObject_GetBuffer(bell, &c->bell, PyBUF_WRITABLE) < 0) return Py_DecRef((PyObject *)c), NULL;
    return (PyObject *)c;
}

static void consumer_dealloc(PyObject *self) {
    Consumer *c = (Consumer *)self;
    Py_DecRef(consumer_close(self, NULL));
    PyMem_Free(c->sources);
    free_object(self);
}

/* ---- module ---- */

#define FAST (METH_FASTCALL | METH_KEYWORDS)
#define CALL(f) ((PyCFunction)(void (*)(void))(f))

static PyMethodDef producer_methods[] = {
    {"try_put", CALL(producer_try_put), FAST, "try_put(data, kind=1) -> bool"},
    {"put_many", CALL(producer_put_many), FAST, "put_many(records, kind=1) -> int"},
    {"close", producer_close, METH_NOARGS, "Releases the lane and the bell."},
    {NULL, NULL, 0, NULL}};
static PyMethodDef consumer_methods[] = {
    {"add", consumer_add, METH_VARARGS, "add(lane, peer_event) -> index"},
    {"drain", CALL(consumer_drain), FAST, "drain(max=256) -> list of (lane, kind, bytes)"},
    {"park", consumer_park, METH_NOARGS, "park() -> bool"},
    {"unpark", consumer_unpark, METH_NOARGS, "unpark()"},
    {"wait", CALL(consumer_wait), METH_VARARGS | METH_KEYWORDS, "wait(timeout=None, spin_us=0) -> bool"},
    {"close", consumer_close, METH_NOARGS, "Releases the lanes and the bell."},
    {NULL, NULL, 0, NULL}};
static PyType_Slot producer_slots[] = {
    {Py_tp_new, producer_new}, {Py_tp_dealloc, producer_dealloc}, {Py_tp_methods, producer_methods}, {0, NULL}};
static PyType_Slot consumer_slots[] = {
    {Py_tp_new, consumer_new}, {Py_tp_dealloc, consumer_dealloc}, {Py_tp_methods, consumer_methods}, {0, NULL}};
static PyType_Spec producer_spec = {
    .name = "lightllm_mp.shm._ring.Producer", .basicsize = sizeof(Producer), .slots = producer_slots};
static PyType_Spec consumer_spec = {
    .name = "lightllm_mp.shm._ring.Consumer", .basicsize = sizeof(Consumer), .slots = consumer_slots};

static int add_type(PyObject *module, PyType_Spec *spec) {
    PyObject *type = PyType_FromModuleAndSpec(module, spec, NULL);
    int result = type ? PyModule_AddType(module, (PyTypeObject *)type) : -1;
    Py_DecRef(type);
    return result;
}

static int setup(PyObject *module) {
    return add_type(module, &producer_spec) < 0 || add_type(module, &consumer_spec) < 0 ? -1 : 0;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, setup}, {0, NULL}};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "_ring", .m_slots = slots};

PyMODINIT_FUNC PyInit__ring(void) { return PyModuleDef_Init(&definition); }
