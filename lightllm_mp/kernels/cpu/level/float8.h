/* Expands panels of float8 weights (native.h). */

/* The byte in the highest bits of each word, an e4m3 code, as a float32 that is 2^120 too small: sign and magnitude go to
 * their places. */
INLINE vf small_e4m3(vu words) { return (vf)((vu)((vi)words >> 4) & 0x87f00000u); }

/* Inputs [from, from + count) of a float8 panel: runs the statement for every four inputs from j on and LANES outputs from
 * v on, with their values in w0 to w3. */
#define EACH_FOUR_OF_FLOAT8(packed, scales, group, from, count, ...)                                       \
    for (long i = 0, end; i < (count); i = end) {                                                          \
        long of = ((from) + i) / (group);                                                                  \
        end = (of + 1) * (group) - (from) < (count) ? (of + 1) * (group) - (from) : (count);               \
        for (int v = 0; v < PANEL; v += LANES) {                                                           \
            vf scale = load_float((scales) + of * PANEL + v);                                              \
            for (long j = i; j < end; j += 4) {                                                            \
                vu words = *(const vu_anywhere *)((packed) + ((from) + j) * PANEL + 4 * v);                \
                vf w0 = small_e4m3(words << 24) * scale, w1 = small_e4m3(words << 16) * scale;             \
                vf w2 = small_e4m3(words << 8) * scale, w3 = small_e4m3(words) * scale;                    \
                __VA_ARGS__                                                                                \
            }                                                                                              \
        }                                                                                                  \
    }
