// Integer products on AVX2: exact by products of 16 bits (weights of 8 bits) and by sums of bytes' products that fit into
// 16 bits (weights of 4), or by VNNI's where the processor has these for 256 bits.
#pragma once

#include <algorithm>
#include <cstring>

namespace pocketvlm {

#if defined(__AVXVNNI__) || (defined(__AVX512VNNI__) && defined(__AVX512VL__))
#define POCKETVLM_DOT_BYTES 1
#endif

constexpr int kRows = 3;  // of a tile: 12 sums; the other four registers are inputs and weights
constexpr bool kHasSignedWeights = false;
constexpr int kHalf = kPanel / 2;  // outputs of a pass: four registers of 8

inline __m256i broadcast(const void* four_bytes) {
  int32_t value;
  std::memcpy(&value, four_bytes, sizeof value);
  return _mm256_set1_epi32(value);
}

inline __m128i bytes_of(Ints rounded) {
  const __m256i halves = halves_of(rounded);
  return _mm_packs_epi16(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
}

#if POCKETVLM_DOT_BYTES

using Stored = int8_t;  // an input as products read it

template <int kBits>  // of the weights
inline void store_inputs(Stored* to, Ints rounded) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bytes_of(rounded));
}

// Weights of four inputs and 8 outputs.
struct Weights8 {
  __m256i bytes;
};

template <Part kPart>
inline Weights8 load_weights(const uint8_t* at) {
  const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
  if (kPart == Part::kWhole) return {bytes};
  return {_mm256_and_si256(kPart == Part::kUpper ? _mm256_srli_epi16(bytes, 4) : bytes, _mm256_set1_epi8(0x0f))};
}

inline __m256i dot(__m256i sum, Weights8 weights, const Stored* inputs) {
#if defined(__AVXVNNI__)
  return _mm256_dpbusd_avx_epi32(sum, weights.bytes, broadcast(inputs));
#else
  return _mm256_dpbusd_epi32(sum, weights.bytes, broadcast(inputs));
#endif
}

#else

// An input as products read it. By weights of 8 bits: of each four the first and the third, the second and the fourth; by
// those of 4: each four as bytes, in the first half of the room that they have.
using Stored = int16_t;

template <int kBits>  // of the weights
inline void store_inputs(Stored* to, Ints rounded) {
  if (kBits == 4) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_cvtepu32_epi64(bytes_of(rounded)));
    return;
  }
  const __m256i order = _mm256_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15,  //
                                         0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_shuffle_epi8(halves_of(rounded), order));
}

// Weights of four inputs and 8 outputs, in 16 bits each: two of the inputs, and the other two.
struct Weights8 {
  __m256i even, odd;
};

template <Part kPart>
inline Weights8 load_weights(const uint8_t* at) {
  static_assert(kPart == Part::kWhole);
  const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
  return {_mm256_and_si256(bytes, _mm256_set1_epi16(0xff)), _mm256_srli_epi16(bytes, 8)};
}

inline __m256i dot(__m256i sum, Weights8 weights, const Stored* inputs) {
  sum = _mm256_add_epi32(sum, _mm256_madd_epi16(weights.even, broadcast(inputs)));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(weights.odd, broadcast(inputs + 2)));
}

#endif

// Half of a panel; a function of its own, and rows that are numbered by the compiler, keep all sums in registers.
template <int kBits, size_t... kRow>
__attribute__((noinline)) void multiply_half(std::index_sequence<kRow...>, const Stored* x, int64_t stride,
                                             const Segment& segment, int64_t first, int32_t* out) {
  constexpr int kParts = kHalf / 8;
  const uint8_t *w = segment.values + 4 * first, *next = segment.next + 2 * first;
  const int lines = segment.lines;
  auto* place = reinterpret_cast<__m256i*>(out + first);
  __m256i sum[kParts][sizeof...(kRow)];
#pragma GCC unroll 4  // everywhere: an array that is addressed by a variable stays in memory
  for (int j = 0; j < kParts; ++j) ((sum[j][kRow] = _mm256_load_si256(place + j + kRow * kPanel / 8)), ...);
  for (const Stored* end = x + segment.inputs; x < end; w += 4 * kPanel) {
    // The two halves of a panel ask for every other line each (of a single one both, and a little more than is needed).
    for (int i = 0; i < lines; i += 2, next += 128) _mm_prefetch(reinterpret_cast<const char*>(next), _MM_HINT_T0);
#pragma GCC unroll 4
    for (int j = 0; j < kParts; ++j) {
      const Weights8 lower = load_weights<kBits == 8 ? Part::kWhole : Part::kLower>(w + 32 * j);
      ((sum[j][kRow] = dot(sum[j][kRow], lower, x + kRow * stride)), ...);
    }
    x += 4;
    if constexpr (kBits == 4) {
#pragma GCC unroll 4
      for (int j = 0; j < kParts; ++j) {
        const Weights8 upper = load_weights<Part::kUpper>(w + 32 * j);
        ((sum[j][kRow] = dot(sum[j][kRow], upper, x + kRow * stride)), ...);
      }
      x += 4;
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < kParts; ++j) (_mm256_store_si256(place + j + kRow * kPanel / 8, sum[j][kRow]), ...);
}

#if !POCKETVLM_DOT_BYTES

// The same with weights of 4 bits: the products of two inputs, at most 2 * 15 * 127, are added eight times in 16 bits
// before they are added to the sums, so nothing is lost, and half of the instructions are spared.
template <size_t... kRow>
__attribute__((noinline)) void multiply_half_of_4_bits(std::index_sequence<kRow...>, const Stored* x, int64_t stride,
                                                       const Segment& segment, int64_t first, int32_t* out) {
  constexpr int kParts = kHalf / 8, kInputs = 32;  // inputs of eight products of pairs, two of each four inputs
  const uint8_t *w = segment.values + 4 * first, *next = segment.next + 2 * first;
  const int lines = segment.lines;
  auto* place = reinterpret_cast<__m256i*>(out + first);
  const __m256i mask = _mm256_set1_epi8(0x0f);
  for (const Stored* end = x + segment.inputs; x < end;) {
    __m256i sum[kParts][sizeof...(kRow)] = {};
    for (const Stored* stop = x + std::min<int64_t>(kInputs, end - x); x < stop; x += 8, w += 4 * kPanel) {
      for (int i = 0; i < lines; i += 2, next += 128) _mm_prefetch(reinterpret_cast<const char*>(next), _MM_HINT_T0);
#pragma GCC unroll 4
      for (int j = 0; j < kParts; ++j) {
        const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + 32 * j));
        const __m256i lower = _mm256_and_si256(bytes, mask);
        const __m256i upper = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask);
        const auto dot = [&](__m256i& pairs, const Stored* inputs) {
          pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(lower, broadcast(inputs)));
          pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(upper, broadcast(inputs + 4)));
        };
        (dot(sum[j][kRow], x + kRow * stride), ...);
      }
    }
    const auto flush = [](__m256i* to, __m256i pairs) {
      const __m256i whole = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
      _mm256_store_si256(to, _mm256_add_epi32(_mm256_load_si256(to), whole));
    };
#pragma GCC unroll 4
    for (int j = 0; j < kParts; ++j) (flush(place + j + kRow * kPanel / 8, sum[j][kRow]), ...);
  }
}

#endif

// Products of a tile's rows, `stride` apart, with a segment, added to int32 [rows, 64].
template <int kBits, int kCount>
void multiply_rows(const Stored* x, int64_t stride, const Segment& segment, int32_t* out) {
  constexpr auto kNumbers = std::make_index_sequence<kCount>{};
  for (int64_t first = 0; first < kPanel; first += kHalf) {
#if !POCKETVLM_DOT_BYTES
    if constexpr (kBits == 4)
      multiply_half_of_4_bits(kNumbers, x, stride, segment, first, out);
    else
#endif
      multiply_half<kBits>(kNumbers, x, stride, segment, first, out);
  }
}

template <int kColumns, size_t... kRow>
__attribute__((noinline)) void multiply_column(std::index_sequence<kRow...>, const int16_t* x, int64_t stride,
                                               const int32_t* w, int64_t steps, int32_t* out) {
  __m256i low[sizeof...(kRow)] = {}, high[sizeof...(kRow)] = {};
  for (const int16_t* end = x + 2 * steps; x < end; x += 2, w += kColumns * kLanes) {
    const Ints some = load(w);
    const auto dot_pair = [&](__m256i& lower, __m256i& upper, const int16_t* inputs) {
      const __m256i pair = broadcast(inputs);
      lower = _mm256_add_epi32(lower, _mm256_madd_epi16(some.low, pair));
      upper = _mm256_add_epi32(upper, _mm256_madd_epi16(some.high, pair));
    };
    (dot_pair(low[kRow], high[kRow], x + kRow * stride), ...);
  }
  (store(out + kRow * kColumns * kLanes, Ints{low[kRow], high[kRow]}), ...);
}

// Products of kTall rows of 16-bit inputs, `stride` apart, with 2 * `steps` rows of weights [steps, 16 C] of two inputs
// each: int32 [kTall, 16 C].
template <int kColumns, int kTall>
void multiply_pairs(const int16_t* x, int64_t stride, const int32_t* w, int64_t steps, int32_t* out) {
  for (int c = 0; c < kColumns; ++c)
    multiply_column<kColumns>(std::make_index_sequence<kTall>{}, x, stride, w + c * kLanes, steps, out + c * kLanes);
}

}  // namespace pocketvlm
