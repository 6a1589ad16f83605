/* Registers of 256 bits as the kernels use them. */
#include <immintrin.h>

#define LANES 8
typedef __m256i bytes;
typedef bytes bytes_anywhere __attribute__((aligned(1), may_alias));

#define multiply_add(a, b, c) ((vf)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#define load_bf16(p) \
    ((vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(p))), 16))
#define narrow_words(v)                                                                                         \
    ((vh)_mm256_castsi256_si128(                                                                                \
        _mm256_permute4x64_epi64(_mm256_packus_epi32((__m256i)(v), (__m256i)(v)), 0xd8)))
#define load_bytes_wide(p) ((vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(p))))
#define load_signed_bytes_wide(p) ((vi)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(p))))
#define load_half(p) ((vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p))))
#define look_up(v, table) \
    ((pairs)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(table))), (__m256i)(v)))
#define set_words(w) _mm256_set1_epi32(w)
#define low_bytes(v) _mm256_and_si256(v, _mm256_set1_epi16(0xff))
#define high_bytes_down(v) _mm256_srli_epi16(v, 8)
#ifdef HAVE_DPWSSD
#define add_pairs(sum, codes, values) _mm256_dpwssd_avx_epi32(sum, codes, values)
#else
#define add_pairs(sum, codes, values) _mm256_add_epi32(sum, _mm256_madd_epi16(codes, values))
#endif
