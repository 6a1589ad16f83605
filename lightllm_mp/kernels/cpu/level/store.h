/* Sums of a panel to results. */
/* Writes `rows` rows of PANEL sums: adds the bias, rounds, leaves out the padding columns. */
INLINE void store_rows(const struct gemm *g, const float *sums, long row, long rows, long panel, enum dtype type) {
    long first = panel * PANEL, width = g->n - first < PANEL ? g->n - first : PANEL;
    for (long r = 0; r < rows; r++) {
        const float *s = sums + r * PANEL;
        long at = (row + r) * g->n + first;
        EACH_PART(i, left, width, {
            vf v = load_float(s + i);
            if (g->bias) v += load_part(g->bias, first + i, left, FLOAT32);
            store_part(g->out, at + i, left, v, type);
        });
    }
}

static void store_panel(const struct gemm *g, const float *sums, long row, long rows, long panel) {
    if (g->out_type == BFLOAT16)
        store_rows(g, sums, row, rows, panel, BFLOAT16);
    else
        store_rows(g, sums, row, rows, panel, FLOAT32);
}
