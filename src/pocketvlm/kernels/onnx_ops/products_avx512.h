// Integer products on AVX-512 with VNNI.
#pragma once

namespace pocketvlm {

using Stored = int8_t;                    // an input as products read it
constexpr int kRows = 6;                  // of a tile: 24 sums, 4 registers of weights, one of inputs
constexpr bool kHasSignedWeights = false;  // what a weight's zero adds to a sum is taken off it

template <int kBits>  // of the weights
inline void store_inputs(Stored* to, Ints rounded) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtsepi32_epi8(rounded));
}

// Four registers of 16 outputs each.
struct Four {
  __m512i a, b, c, d;
};

template <Part kPart>
inline __m512i load_one(const uint8_t* at) {
  const __m512i bytes = _mm512_loadu_si512(at);
  if (kPart == Part::kWhole) return bytes;
  return _mm512_and_si512(kPart == Part::kUpper ? _mm512_srli_epi16(bytes, 4) : bytes, _mm512_set1_epi8(0x0f));
}

template <Part kPart>
inline Four load_weights(const uint8_t* at) {
  return {load_one<kPart>(at), load_one<kPart>(at + 64), load_one<kPart>(at + 128), load_one<kPart>(at + 192)};
}

// Four inputs of a row by their weights, added to its sums. As text, because GCC would fetch the inputs of all rows
// first, and then has no registers left for the sums.
inline void dot(Four& sum, const Four& weights, const int8_t* inputs) {
  __m512i all;
  __asm__(
      "vpbroadcastd %[inputs], %[all]\n\t"
      "vpdpbusd %[all], %[w0], %[s0]\n\t"
      "vpdpbusd %[all], %[w1], %[s1]\n\t"
      "vpdpbusd %[all], %[w2], %[s2]\n\t"
      "vpdpbusd %[all], %[w3], %[s3]"
      : [s0] "+v"(sum.a), [s1] "+v"(sum.b), [s2] "+v"(sum.c), [s3] "+v"(sum.d), [all] "=&v"(all)
      : [w0] "v"(weights.a), [w1] "v"(weights.b), [w2] "v"(weights.c), [w3] "v"(weights.d),
        [inputs] "m"(*reinterpret_cast<const char(*)[4]>(inputs)));
}

inline Four fetch(const int32_t* at) {
  return {_mm512_load_si512(at), _mm512_load_si512(at + 16), _mm512_load_si512(at + 32), _mm512_load_si512(at + 48)};
}

inline void put(int32_t* out, const Four& sum) {
  _mm512_store_si512(out, sum.a), _mm512_store_si512(out + 16, sum.b);
  _mm512_store_si512(out + 32, sum.c), _mm512_store_si512(out + 48, sum.d);
}

// A function of its own, and rows that are numbered by the compiler, keep all sums in registers.
template <int kBits, size_t... kRow>
__attribute__((noinline)) void multiply_segment(std::index_sequence<kRow...>, const int8_t* x, int64_t stride,
                                                const Segment& segment, int32_t* out) {
  const uint8_t *w = segment.values, *next = segment.next;
  const int lines = segment.lines;
  Four sum[] = {fetch(out + kRow * kPanel)...};
  for (const int8_t* end = x + segment.inputs; x < end; w += 4 * 64) {
    for (int i = 0; i < lines; ++i, next += 64) _mm_prefetch(reinterpret_cast<const char*>(next), _MM_HINT_T0);
    const Four lower = load_weights<kBits == 8 ? Part::kWhole : Part::kLower>(w);
    (dot(sum[kRow], lower, x + kRow * stride), ...);
    x += 4;
    if (kBits == 4) {
      __asm__ volatile("" ::: "memory");  // what is read twice takes no registers between
      const Four upper = load_weights<Part::kUpper>(w);
      (dot(sum[kRow], upper, x + kRow * stride), ...);
      x += 4;
    }
  }
  (put(out + kRow * kPanel, sum[kRow]), ...);
}

// Products of a tile's rows, `stride` apart, with a segment, added to int32 [rows, 64].
template <int kBits, int kCount>
void multiply_rows(const Stored* x, int64_t stride, const Segment& segment, int32_t* out) {
  multiply_segment<kBits>(std::make_index_sequence<kCount>{}, x, stride, segment, out);
}

template <int kColumns>
struct Sums {
  __m512i a, b, c, d, e;
};

// Two inputs of a row by their weights. As text for the reason that `dot` above has.
template <int kColumns>
inline void dot_pair(Sums<kColumns>& sum, const __m512i* weights, const int16_t* inputs) {
  __m512i all;
  __asm__(
      "vpbroadcastd %[inputs], %[all]\n\t"
      "vpdpwssd %[all], %[w0], %[s0]\n\t"
      "vpdpwssd %[all], %[w1], %[s1]\n\t"
      "vpdpwssd %[all], %[w2], %[s2]\n\t"
      "vpdpwssd %[all], %[w3], %[s3]"
      : [s0] "+v"(sum.a), [s1] "+v"(sum.b), [s2] "+v"(sum.c), [s3] "+v"(sum.d), [all] "=&v"(all)
      : [w0] "v"(weights[0]), [w1] "v"(weights[1]), [w2] "v"(weights[2]), [w3] "v"(weights[3]),
        [inputs] "m"(*reinterpret_cast<const char(*)[4]>(inputs)));
  if (kColumns == 5) sum.e = _mm512_dpwssd_epi32(sum.e, weights[4], all);
}

template <int kColumns, size_t... kRow>
__attribute__((noinline)) void multiply_pairs_of(std::index_sequence<kRow...>, const int16_t* x, int64_t stride,
                                                 const int32_t* w, int64_t steps, int32_t* out) {
  Sums<kColumns> sum[sizeof...(kRow)] = {};
  for (const int16_t* end = x + 2 * steps; x < end; x += 2, w += kColumns * kLanes) {
    __m512i some[kColumns];
    for (int c = 0; c < kColumns; ++c) some[c] = _mm512_loadu_si512(w + c * kLanes);
    (dot_pair(sum[kRow], some, x + kRow * stride), ...);
  }
  const auto put = [&](const Sums<kColumns>& s, int32_t* to) {
    _mm512_store_si512(to, s.a), _mm512_store_si512(to + 16, s.b);
    _mm512_store_si512(to + 32, s.c), _mm512_store_si512(to + 48, s.d);
    if (kColumns == 5) _mm512_store_si512(to + 64, s.e);
  };
  (put(sum[kRow], out + kRow * kColumns * kLanes), ...);
}

// Products of kTall rows of 16-bit inputs, `stride` apart, with 2 * `steps` rows of weights [steps, 16 C] of two inputs
// each: int32 [kTall, 16 C].
template <int kColumns, int kTall>
void multiply_pairs(const int16_t* x, int64_t stride, const int32_t* w, int64_t steps, int32_t* out) {
  multiply_pairs_of<kColumns>(std::make_index_sequence<kTall>{}, x, stride, w, steps, out);
}

}  // namespace pocketvlm
