/* The Python module: raw addresses and sizes in, nothing out. No checks of shapes here: `overlay.py` makes them. */
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#include <string.h>

#include "native.h"

#define MAX_ARGS 32

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
    _Static_assert((count) <= MAX_ARGS, "more arguments than there is room for"); \
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
    return PyUnicode_FromString(kernels->name);
}

static PyObject *py_levels(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    PyObject *all = PyList_New(0);
    const char *name;
    for (int i = 0; all && level_at(i, &name); i++) {
        PyObject *one = name ? PyUnicode_FromString(name) : NULL;
        if (name && (one == NULL || PyList_Append(all, one) < 0)) Py_CLEAR(all);
        Py_XDECREF(one);
    }
    return all;
}

static PyObject *py_use_level(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    if (given != 1) {
        PyErr_SetString(PyExc_TypeError, "use_level takes a name");
        return NULL;
    }
    PyObject *bytes = PyUnicode_AsUTF8String(args[0]);
    if (bytes == NULL) return NULL;
    int failed = use_level(PyBytes_AsString(bytes));
    Py_DECREF(bytes);
    if (failed) return PyErr_Format(PyExc_ValueError, "this processor has no level %R", args[0]);
    Py_RETURN_NONE;
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

static PyObject *py_ggml_format(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    ARGS("ggml_format", 1);
    return PyLong_FromLong(ggml_format((int)a[0]));
}

static PyObject *py_blocks_per_section(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    ARGS("blocks_per_section", 1);
    if (a[0] < 0 || a[0] >= FORMATS) return PyErr_Format(PyExc_ValueError, "no format %lld", a[0]);
    return PyLong_FromLong(formats[a[0]].per);
}

static PyObject *py_quantised_bytes(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    ARGS("quantised_bytes", 4);
    return PyLong_FromLong(quantised_bytes((int)a[0], a[1], a[2], a[3]));
}

static PyObject *py_pack_ggml(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    ARGS("pack_ggml", 6);
    int failed;
    Py_BEGIN_ALLOW_THREADS
    failed = pack_ggml((int)a[0], POINTER(1), a[2], POINTER(3), a[4], a[5]);
    Py_END_ALLOW_THREADS
    if (failed) return PyErr_Format(PyExc_ValueError, "rows of %lld bytes do not fit %lld inputs", a[2], a[5]);
    Py_RETURN_NONE;
}

static PyObject *py_pack_int8(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    ARGS("pack_int8", 6);
    Py_BEGIN_ALLOW_THREADS
    pack_int8(POINTER(0), POINTER(1), POINTER(2), a[3], a[4], a[5]);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_float8_bytes(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    ARGS("float8_bytes", 3);
    return PyLong_FromLong(float8_bytes(a[0], a[1], a[2]));
}

static PyObject *py_pack_float8(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    ARGS("pack_float8", 6);
    Py_BEGIN_ALLOW_THREADS
    pack_float8(POINTER(0), POINTER(1), POINTER(2), a[3], a[4], a[5]);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_pack_grouped(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    ARGS("pack_grouped", 7);
    Py_BEGIN_ALLOW_THREADS
    pack_grouped(POINTER(0), POINTER(1), POINTER(2), POINTER(3), a[4], a[5], a[6]);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_quantised(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    ARGS("quantised", 8);
    int failed;
    Py_BEGIN_ALLOW_THREADS
    failed = quantised_run(POINTER(0), POINTER(1), a[2], POINTER(3), a[4], a[5], a[6], a[7]);
    Py_END_ALLOW_THREADS
    if (failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *py_expand_rows(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    ARGS("expand_rows", 6);
    Py_BEGIN_ALLOW_THREADS
    expand_rows(POINTER(0), a[1], POINTER(2), a[3], POINTER(4), a[5]);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_norm(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    ARGS("norm", 13);
    struct norm job = {POINTER(0), POINTER(1), POINTER(2), POINTER(3), POINTER(4), POINTER(5), a[6],
                       a[7],       a[8],       bits_float(a[9]), a[10], a[11],    a[12]};
    Py_BEGIN_ALLOW_THREADS
    norm_run(&job);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_squares(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    ARGS("squares", 7);
    struct squares job = {POINTER(0), POINTER(1), a[2], a[3], a[4], a[5], a[6]};
    Py_BEGIN_ALLOW_THREADS
    squares_run(&job);
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
    ARGS("route", 13);
    struct route job = {POINTER(0), POINTER(1), POINTER(2), POINTER(3), a[4],  a[5],           a[6],
                        a[7],       a[8],       a[9],       a[10],      a[11], bits_float(a[12])};
    Py_BEGIN_ALLOW_THREADS
    route_run(&job);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_experts(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    ARGS("experts", 17);
    struct experts job = {POINTER(0), POINTER(1), POINTER(2), POINTER(3), POINTER(4), a[5],  a[6],  POINTER(7), POINTER(8),
                          POINTER(9), a[10],      a[11],      a[12],      a[13],      a[14], a[15], a[16]};
    int failed;
    Py_BEGIN_ALLOW_THREADS
    failed = experts_run(&job);
    Py_END_ALLOW_THREADS
    if (failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *py_rotary(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    ARGS("rotary", 17);
    struct rotary job = {POINTER(0), POINTER(1), POINTER(2), POINTER(3), POINTER(4), POINTER(5),
                         POINTER(6), POINTER(7), a[8],       a[9],       {a[10], a[11], a[12]},
                         a[13],      a[14],      POINTER(15), POINTER(16)};
    Py_BEGIN_ALLOW_THREADS
    rotary_run(&job);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_attention(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    ARGS("attention", 27);
    struct attention job = {
        POINTER(0), POINTER(1), POINTER(2), POINTER(3), POINTER(4), POINTER(5), POINTER(6), POINTER(7), POINTER(8),
        a[9], a[10], a[11], a[12], bits_float(a[13]), bits_float(a[14]), {a[15], a[16], a[17]}, a[18], a[19],
        POINTER(20), POINTER(21), a[22], a[23], a[24], POINTER(25), POINTER(26)};
    Py_BEGIN_ALLOW_THREADS
    attention_run(&job);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_latent_attention(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    ARGS("latent_attention", 16);
    struct attention job = {.q = POINTER(0),
                            .keys = POINTER(1),
                            .values = POINTER(1),
                            .out = POINTER(2),
                            .seq_start = POINTER(3),
                            .context = POINTER(4),
                            .rows = POINTER(5),
                            .slot_table = POINTER(6),
                            .sequences = a[7],
                            .table_width = a[8],
                            .max_query = a[9],
                            .scale = bits_float(a[10]),
                            .h = {a[11], a[12], a[13]},
                            .value_dim = a[14],
                            .type = a[15],
                            .kv_type = a[15],
                            .q_line = a[11] * a[13],
                            .kv_line = a[13],
                            .shared = 1};
    Py_BEGIN_ALLOW_THREADS
    attention_run(&job);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_gemm_heads(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    ARGS("gemm_heads", 8);
    long heads = a[3], m = a[4], n = a[5], k = a[6], size = a[7] == BFLOAT16 ? 2 : 4, bytes = packed_bytes(n, k, a[7]);
    int failed = 0;
    Py_BEGIN_ALLOW_THREADS
    for (long h = 0; h < heads && !failed; h++) {
        struct gemm job = {(const char *)POINTER(0) + h * m * k * size, (const char *)POINTER(1) + h * bytes, NULL,
                           (char *)POINTER(2) + h * m * n * size, m, n, k, a[7], a[7]};
        failed = gemm_run(&job);
    }
    Py_END_ALLOW_THREADS
    if (failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *py_sigmoid_gate(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    ARGS("sigmoid_gate", 8);
    struct sigmoid_gate job = {POINTER(0), POINTER(1), POINTER(2), a[3], a[4], a[5], a[6], a[7]};
    Py_BEGIN_ALLOW_THREADS
    sigmoid_gate_run(&job);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_delta(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    ARGS("delta", 21);
    struct delta job = {POINTER(0), POINTER(1), POINTER(2), POINTER(3), POINTER(4), POINTER(5), POINTER(6),
                        POINTER(7), POINTER(8), POINTER(9), POINTER(10), POINTER(11), a[12], a[13],
                        a[14], a[15], a[16], a[17], a[18], bits_float(a[19]), a[20]};
    Py_BEGIN_ALLOW_THREADS
    delta_run(&job);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

#define METHOD(name) {#name, (PyCFunction)(void (*)(void))py_##name, METH_FASTCALL, NULL}
static PyMethodDef methods[] = {
    METHOD(set_threads), METHOD(level),       METHOD(levels),   METHOD(use_level),
    METHOD(packed_bytes), METHOD(pack),       METHOD(gemm),     METHOD(ggml_format),
    METHOD(blocks_per_section), METHOD(quantised_bytes), METHOD(pack_ggml), METHOD(pack_int8),
    METHOD(float8_bytes), METHOD(pack_float8), METHOD(pack_grouped), METHOD(quantised),
    METHOD(expand_rows), METHOD(norm),        METHOD(squares),  METHOD(activation),
    METHOD(rotary),      METHOD(attention),   METHOD(route),    METHOD(experts),
    METHOD(sigmoid_gate), METHOD(delta),      METHOD(latent_attention), METHOD(gemm_heads), {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_native", "CPU kernels on raw addresses.", -1, methods};

PyMODINIT_FUNC PyInit__native(void) {
    use_best_level();
    return PyModule_Create(&module);
}
