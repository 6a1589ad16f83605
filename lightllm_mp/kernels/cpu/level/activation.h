/* Activations, alone or times the other half of the row. */


/* x * P(x^2) / Q(x^2) on [-4, 4], outside of which float32 knows only -1 and 1; the coefficients of Eigen's erf. */
INLINE vf erf_vf(vf x) {
    vf clipped = select_vf(x > 4.0f, splat(4.0f), select_vf(x < -4.0f, splat(-4.0f), x));
    vf s = clipped * clipped;
    vf p = multiply_add(s, splat(-2.72614225801306e-10f), splat(2.77068142495902e-08f));
    p = multiply_add(p, s, splat(-2.10102402082508e-06f));
    p = multiply_add(p, s, splat(-5.69250639462346e-05f));
    p = multiply_add(p, s, splat(-7.34990630326855e-04f));
    p = multiply_add(p, s, splat(-2.95459980854025e-03f));
    p = multiply_add(p, s, splat(-1.60960333262415e-02f));
    vf q = multiply_add(s, splat(-1.45660718464996e-05f), splat(-2.13374055278905e-04f));
    q = multiply_add(q, s, splat(-1.68282697438203e-03f));
    q = multiply_add(q, s, splat(-7.37332916720468e-03f));
    q = multiply_add(q, s, splat(-1.42647390514189e-02f));
    return clipped * p / q;
}

INLINE vf curve_vf(vf x, enum curve curve) {
    switch (curve) {
        case GELU: return 0.5f * x * (1.0f + erf_vf(x * 0.70710678118654752f));
        case GELU_TANH: /* 0.5 x (1 + tanh u) = x / (1 + e^(-2u)) with u = sqrt(2 / pi) (x + 0.044715 x^3) */
            return x / (1.0f + exp_vf(-1.5957691216057308f * (x + 0.044715f * x * x * x)));
        case SWIGLU_OAI:
        case QUICK_GELU: return x / (1.0f + exp_vf(-1.702f * x));
        case RELU: return select_vf(x < 0.0f, (vf){0}, x);
        default: return x / (1.0f + exp_vf(-x));
    }
}

/* A number that is none stays so. */
INLINE vf at_most(vf x, float limit) { return select_vf(x > limit, splat(limit), x); }

INLINE void activation_row(const struct activation *job, long row, enum curve curve, enum dtype type) {
    long n = job->n, in = job->gated ? row * 2 * n : row * n, out = row * n;
    EACH_PART(i, left, n, {
        vf v = load_part(job->x, in + i, left, type), up = {0};
        if (job->gated) up = load_part(job->x, in + n + i, left, type);
        if (curve == SWIGLU_OAI) {
            v = at_most(v, 7.0f);
            up = -at_most(-at_most(up, 7.0f), 7.0f) + 1.0f;
        }
        v = curve_vf(v, curve);
        if (job->gated) v *= up;
        store_part(job->out, out + i, left, v, type);
    });
}

INLINE void rows_of_type(const struct activation *job, long from, long to, enum dtype type) {
    for (long row = from; row < to; row++) {
        switch (job->curve) {
            case GELU: activation_row(job, row, GELU, type); break;
            case GELU_TANH: activation_row(job, row, GELU_TANH, type); break;
            case QUICK_GELU: activation_row(job, row, QUICK_GELU, type); break;
            case RELU: activation_row(job, row, RELU, type); break;
            case SWIGLU_OAI: activation_row(job, row, SWIGLU_OAI, type); break;
            default: activation_row(job, row, SILU, type); break;
        }
    }
}

static void activation_rows(const void *arg, long from, long to) {
    const struct activation *job = arg;
    if (job->type == BFLOAT16)
        rows_of_type(job, from, to, BFLOAT16);
    else
        rows_of_type(job, from, to, FLOAT32);
}

INLINE void gate_row(const struct sigmoid_gate *job, long row, enum dtype type, enum dtype gate_type) {
    EACH_PART(i, left, job->n, {
        vf gate = job->single ? splat(load_one(job->gate, row, gate_type))
                              : load_part(job->gate, row * job->n + i, left, gate_type);
        vf v = load_part(job->x, row * job->n + i, left, type) / (1.0f + exp_vf(-gate));
        store_part(job->out, row * job->n + i, left, v, type);
    });
}

static void gate_rows(const void *arg, long from, long to) {
    const struct sigmoid_gate *job = arg;
    for (long row = from; row < to; row++) {
        if (job->type == BFLOAT16 && job->gate_type == BFLOAT16)
            gate_row(job, row, BFLOAT16, BFLOAT16);
        else if (job->type == BFLOAT16)
            gate_row(job, row, BFLOAT16, FLOAT32);
        else
            gate_row(job, row, FLOAT32, FLOAT32);
    }
}
