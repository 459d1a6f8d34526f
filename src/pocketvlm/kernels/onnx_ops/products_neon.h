// Integer products on NEON with dot products (Armv8.2; Apple silicon, Graviton 2 and later).
#pragma once

#include <cstring>

namespace pocketvlm {

using Stored = int8_t;                   // an input as products read it
constexpr int kRows = 5;                 // of a tile: 20 sums, 4 registers of weights, 5 of inputs
constexpr bool kHasSignedWeights = true;  // a weight's zero is taken off it when it is loaded
constexpr int kQuarter = kPanel / 4;     // outputs of a pass: four registers of 4

template <int kBits>  // of the weights
inline void store_inputs(Stored* to, Ints rounded) {
  const int16x8_t low = vcombine_s16(vqmovn_s32(rounded.v[0]), vqmovn_s32(rounded.v[1]));
  const int16x8_t high = vcombine_s16(vqmovn_s32(rounded.v[2]), vqmovn_s32(rounded.v[3]));
  vst1q_s8(to, vcombine_s8(vqmovn_s16(low), vqmovn_s16(high)));
}

// Weights of four inputs and 4 outputs.
template <Part kPart>
inline int8x16_t load_weights(const uint8_t* at) {
  const uint8x16_t bytes = vld1q_u8(at);
  if (kPart == Part::kWhole) return vreinterpretq_s8_u8(veorq_u8(bytes, vdupq_n_u8(128)));
  const uint8x16_t steps = kPart == Part::kUpper ? vshrq_n_u8(bytes, 4) : vandq_u8(bytes, vdupq_n_u8(15));
  return vsubq_s8(vreinterpretq_s8_u8(steps), vdupq_n_s8(8));
}

inline int8x16_t broadcast(const Stored* inputs) {
  int32_t value;
  std::memcpy(&value, inputs, sizeof value);
  return vreinterpretq_s8_s32(vdupq_n_s32(value));
}

// A quarter of a panel; a function of its own, and rows that are numbered by the compiler, keep all sums in registers.
template <int kBits, size_t... kRow>
__attribute__((noinline)) void multiply_quarter(std::index_sequence<kRow...>, const Stored* x, int64_t stride,
                                                const Segment& segment, int64_t first, int32_t* out) {
  constexpr int kParts = kQuarter / 4;
  const uint8_t* w = segment.values + 4 * first;
  int32x4_t sum[sizeof...(kRow)][kParts];
#pragma GCC unroll 4  // everywhere: an array that is addressed by a variable stays in memory
  for (int j = 0; j < kParts; ++j) ((sum[kRow][j] = vld1q_s32(out + first + 4 * j + kRow * kPanel)), ...);
  const auto dot = [](int32x4_t* sums, const int8x16_t* weights, const Stored* inputs) {
    const int8x16_t four = broadcast(inputs);
#pragma GCC unroll 4
    for (int j = 0; j < kParts; ++j) sums[j] = vdotq_s32(sums[j], weights[j], four);
  };
  for (const Stored* end = x + segment.inputs; x < end; w += 4 * kPanel) {
    int8x16_t some[kParts];
#pragma GCC unroll 4
    for (int j = 0; j < kParts; ++j) some[j] = load_weights<kBits == 8 ? Part::kWhole : Part::kLower>(w + 16 * j);
    (dot(sum[kRow], some, x + kRow * stride), ...);
    x += 4;
    if (kBits == 4) {
#pragma GCC unroll 4
      for (int j = 0; j < kParts; ++j) some[j] = load_weights<Part::kUpper>(w + 16 * j);
      (dot(sum[kRow], some, x + kRow * stride), ...);
      x += 4;
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < kParts; ++j) (vst1q_s32(out + first + 4 * j + kRow * kPanel, sum[kRow][j]), ...);
}

// Products of a tile's rows, `stride` apart, with a segment, added to int32 [rows, 64].
template <int kBits, int kCount>
void multiply_rows(const Stored* x, int64_t stride, const Segment& segment, int32_t* out) {
  constexpr auto kNumbers = std::make_index_sequence<kCount>{};
  for (int64_t first = 0; first < kPanel; first += kQuarter)
    multiply_quarter<kBits>(kNumbers, x, stride, segment, first, out);
}

template <int kColumns, size_t... kRow>
__attribute__((noinline)) void multiply_column(std::index_sequence<kRow...>, const int16_t* x, int64_t stride,
                                               const int32_t* w, int64_t steps, int32_t* out) {
  int32x4_t sum[sizeof...(kRow)][4] = {};
  const auto dot_pair = [](int32x4_t* sums, const int16x8x2_t& a, const int16x8x2_t& b, const int16_t* inputs) {
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      sums[0] = vmlal_n_s16(sums[0], vget_low_s16(a.val[i]), inputs[i]);
      sums[1] = vmlal_n_s16(sums[1], vget_high_s16(a.val[i]), inputs[i]);
      sums[2] = vmlal_n_s16(sums[2], vget_low_s16(b.val[i]), inputs[i]);
      sums[3] = vmlal_n_s16(sums[3], vget_high_s16(b.val[i]), inputs[i]);
    }
  };
  for (const int16_t* end = x + 2 * steps; x < end; x += 2, w += kColumns * kLanes) {
    const auto* at = reinterpret_cast<const int16_t*>(w);
    const int16x8x2_t a = vld2q_s16(at), b = vld2q_s16(at + kLanes);
    (dot_pair(sum[kRow], a, b, x + kRow * stride), ...);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) (vst1q_s32(out + kRow * kColumns * kLanes + 4 * j, sum[kRow][j]), ...);
}

// Products of kTall rows of 16-bit inputs, `stride` apart, with 2 * `steps` rows of weights [steps, 16 C] of two inputs
// each: int32 [kTall, 16 C].
template <int kColumns, int kTall>
void multiply_pairs(const int16_t* x, int64_t stride, const int32_t* w, int64_t steps, int32_t* out) {
  for (int c = 0; c < kColumns; ++c)
    multiply_column<kColumns>(std::make_index_sequence<kTall>{}, x, stride, w + c * kLanes, steps, out + c * kLanes);
}

}  // namespace pocketvlm
