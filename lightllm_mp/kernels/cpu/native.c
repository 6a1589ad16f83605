/* The Python module: raw addresses and sizes in, nothing out. No checks of shapes here: `overlay.py` makes them. */
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#include <string.h>

#include "native.h"

#define MAX_ARGS 24

/* Reads integers; -1 with an exception set when there are not exactly `count`. */
static int integers(const char *name, PyObject *const *args, Py_ssize_t given, int count, long long *to) {
    if (given != count) {
        PyErr_Format(PyExc_TypeError, "%s takes %d integers, %zd were given", name, count, given);
        return -1;
    }
    for (int i = 0; i < count; i++) {
        to[i] = PyLong_AsLongLong(args[i]);
        if (to[i] == -1 && PyErr_Occurred()) return -1;
    }
    return 0;
}

#define ARGS(name, count)                                                        \
    long long a[MAX_ARGS];                                                       \
    if (integers(name, args, given, count, a) < 0) return NULL
#define POINTER(i) ((void *)(intptr_t)a[i])

static float bits_float(long long bits) {
    uint32_t u = (uint32_t)bits;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

static PyObject *py_set_threads(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    ARGS("set_threads", 1);
    set_threads((int)a[0]);
    Py_RETURN_NONE;
}

static PyObject *py_level(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    return PyLong_FromLong(x86_level());
}

static PyObject *py_packed_bytes(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    ARGS("packed_bytes", 3);
    return PyLong_FromLong(packed_bytes(a[0], a[1], a[2]));
}

static PyObject *py_pack(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    ARGS("pack", 5);
    Py_BEGIN_ALLOW_THREADS
    pack_weight(POINTER(0), POINTER(1), a[2], a[3], a[4]);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_gemm(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    ARGS("gemm", 9);
    struct gemm job = {POINTER(0), POINTER(1), POINTER(2), POINTER(3), a[4], a[5], a[6], a[7], a[8]};
    int failed;
    Py_BEGIN_ALLOW_THREADS
    failed = gemm_run(&job);
    Py_END_ALLOW_THREADS
    if (failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *py_norm(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    ARGS("norm", 12);
    struct norm job = {POINTER(0), POINTER(1), POINTER(2), POINTER(3), POINTER(4), a[5], a[6], a[7],
                       bits_float(a[8]), a[9], a[10], a[11]};
    Py_BEGIN_ALLOW_THREADS
    norm_run(&job);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_activation(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    ARGS("activation", 7);
    struct activation job = {POINTER(0), POINTER(1), a[2], a[3], a[4], a[5], a[6]};
    Py_BEGIN_ALLOW_THREADS
    activation_run(&job);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_route(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    ARGS("route", 10);
    struct route job = {POINTER(0), POINTER(1), POINTER(2), a[3], a[4], a[5], a[6], a[7], a[8], bits_float(a[9])};
    Py_BEGIN_ALLOW_THREADS
    route_run(&job);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_experts(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    ARGS("experts", 13);
    struct experts job = {POINTER(0), POINTER(1), POINTER(2), POINTER(3), POINTER(4), POINTER(5),
                          a[6], a[7], a[8], a[9], a[10], a[11], a[12]};
    int failed;
    Py_BEGIN_ALLOW_THREADS
    failed = experts_run(&job);
    Py_END_ALLOW_THREADS
    if (failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *py_rotary(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    ARGS("rotary", 14);
    struct rotary job = {POINTER(0), POINTER(1), POINTER(2), POINTER(3), POINTER(4), POINTER(5), POINTER(6),
                         POINTER(7), a[8],       a[9],       {a[10], a[11], a[12]}, a[13]};
    Py_BEGIN_ALLOW_THREADS
    rotary_run(&job);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_attention(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    ARGS("attention", 19);
    struct attention job = {
        POINTER(0), POINTER(1), POINTER(2), POINTER(3), POINTER(4), POINTER(5), POINTER(6), POINTER(7), POINTER(8),
        a[9], a[10], a[11], a[12], bits_float(a[13]), bits_float(a[14]), {a[15], a[16], a[17]}, a[18]};
    Py_BEGIN_ALLOW_THREADS
    attention_run(&job);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

#define METHOD(name) {#name, (PyCFunction)(void (*)(void))py_##name, METH_FASTCALL, NULL}
static PyMethodDef methods[] = {
    METHOD(set_threads), METHOD(level),      METHOD(packed_bytes), METHOD(pack),    METHOD(gemm),
    METHOD(norm),        METHOD(activation), METHOD(rotary),       METHOD(attention),
    METHOD(route),       METHOD(experts),    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_native", "CPU kernels on raw addresses.", -1, methods};

PyMODINIT_FUNC PyInit__native(void) { return PyModule_Create(&module); }
