"""Vectors of floats, as wide as the processor has them."""

SOURCE = r"""
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

using torch::stable::Tensor;

namespace {

// --- vectors of floats, as wide as the processor has them ---

#if defined(__AVX512F__)
constexpr int LANES = 16;
constexpr int SQUARE = 5;                        // dots: SQUARE x SQUARE sums in registers
constexpr int TALL[] = {0, 14, 10, 8, 5};        // sweep: rows of a tile that is 1, 2, 3, 4 vectors wide
#else
constexpr int LANES = 8;
constexpr int SQUARE = 3;
constexpr int TALL[] = {0, 10, 5, 4, 2};
#endif
constexpr int WIDE = 4;

typedef float Vector __attribute__((vector_size(LANES * 4)));
typedef int32_t Mask __attribute__((vector_size(LANES * 4)));

inline Vector load(const float* p) { Vector v; std::memcpy(&v, p, sizeof v); return v; }
inline void store(float* p, Vector v) { std::memcpy(p, &v, sizeof v); }

// the first n < LANES alone
#if defined(__AVX512F__)
inline Vector load(const float* p, int64_t n) { return (Vector)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p); }
inline void store(float* p, Vector v, int64_t n) { _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v); }
#elif defined(__AVX2__)
inline __m256i first(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Vector load(const float* p, int64_t n) { return (Vector)_mm256_maskload_ps(p, first(n)); }
inline void store(float* p, Vector v, int64_t n) { _mm256_maskstore_ps(p, first(n), (__m256)v); }
#else
inline Vector load(const float* p, int64_t n) { Vector v{}; std::memcpy(&v, p, n * 4); return v; }
inline void store(float* p, Vector v, int64_t n) { std::memcpy(p, &v, n * 4); }
#endif

inline float sum(Vector v) {
  typedef float Half __attribute__((vector_size(LANES * 2)));
  typedef float Four __attribute__((vector_size(16)));
  Half halves[2];
  std::memcpy(halves, &v, sizeof v);
  Half half = halves[0] + halves[1];
  Four fours[LANES / 8];
  std::memcpy(fours, &half, sizeof half);
  Four four = fours[0];
  if constexpr (LANES == 16) four += fours[1];
  return (four[0] + four[2]) + (four[1] + four[3]);
}

"""
