/* AMX tiles as the kernels here use them: sums in 0-3, the left operand in 4 and 5, the right one in 6 and 7. */
#ifndef LIGHTLLM_MP_AMX_H
#define LIGHTLLM_MP_AMX_H

#include <immintrin.h>
#include <stdint.h>

#define TILE_ROWS 16
#define AMX __attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512vl,avx512bf16")))

struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
};

/* Tiles 0-3: sums (upper, lower rows) x (left, right columns); 4, 5: x; 6, 7: weight. */
AMX static inline void configure(int upper, int lower) {
    struct tile_config config = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        config.bytes[t] = 64;
        config.rows[t] = TILE_ROWS;
    }
    config.rows[0] = config.rows[1] = config.rows[4] = upper;
    config.rows[2] = config.rows[3] = config.rows[5] = lower ? lower : 1;
    _tile_loadconfig(&config);
}

#endif
