/* Registers of 128 bits as the products of words use them: SSE2. */
#include <emmintrin.h>

typedef __m128i bytes;
typedef bytes bytes_anywhere __attribute__((aligned(1), may_alias));

#define set_words(w) _mm_set1_epi32(w)
#define low_bytes(v) _mm_and_si128(v, _mm_set1_epi16(0xff))
#define high_bytes_down(v) _mm_srli_epi16(v, 8)
#define add_pairs(sum, codes, values) _mm_add_epi32(sum, _mm_madd_epi16(codes, values))
