/* Registers of 512 bits as the kernels use them. */
#include <immintrin.h>

#define LANES 16
typedef __m512i bytes;
typedef bytes bytes_anywhere __attribute__((aligned(1), may_alias));

#define multiply_add(a, b, c) ((vf)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#define load_bf16(p) \
    ((vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(p))), 16))
#define narrow_words(v) ((vh)_mm512_cvtepi32_epi16((__m512i)(v)))
#define load_bytes_wide(p) ((vi)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(p))))
#define load_signed_bytes_wide(p) ((vi)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(p))))
#define load_half(p) ((vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(p))))
#define look_up(v, table) \
    ((pairs)_mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(table))), (__m512i)(v)))
#define set_words(w) _mm512_set1_epi32(w)
#define low_bytes(v) _mm512_and_si512(v, _mm512_set1_epi16(0xff))
#define high_bytes_down(v) _mm512_srli_epi16(v, 8)
#ifdef HAVE_DPWSSD
#define add_pairs(sum, codes, values) _mm512_dpwssd_epi32(sum, codes, values)
#else
#define add_pairs(sum, codes, values) _mm512_add_epi32(sum, _mm512_madd_epi16(codes, values))
#endif
