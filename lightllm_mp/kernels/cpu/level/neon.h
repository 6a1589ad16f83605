/* Registers of 128 bits as the kernels use them on aarch64. */
#include <arm_neon.h>

#define LANES 4

#define multiply_add(a, b, c) ((vf)vfmaq_f32((float32x4_t)(c), (float32x4_t)(a), (float32x4_t)(b)))
#define load_half(p) ((vf)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))))
#define load_signed_bytes_wide(p) ((vi)vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u32(four_bytes(p))))))
#define load_bytes_wide(p) ((vi)vmovl_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_u32(four_bytes(p))))))
#define look_up(v, table) ((pairs)vqtbl1q_s8(vld1q_s8(table), (uint8x16_t)(v)))

static inline __attribute__((always_inline)) uint32x2_t four_bytes(const void *p) {
    uint32_t word;
    __builtin_memcpy(&word, p, sizeof word);
    return vdup_n_u32(word);
}
