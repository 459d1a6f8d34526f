// Sixteen values in four registers of NEON.
#pragma once

#include <arm_neon.h>

namespace pocketvlm {

struct Floats {
  float32x4_t v[4];
};
struct Ints {
  int32x4_t v[4];
};
using Lanes = int;  // how many of the first ones
constexpr int kSums = 4;  // of Floats in registers beside what is added to them

inline Lanes first_lanes(int64_t count) { return static_cast<Lanes>(std::clamp<int64_t>(count, 0, kLanes)); }

// `part(i)` of each quarter i.
template <typename Out, typename Part>
inline Out quarters(const Part& part) {
  return {{part(0), part(1), part(2), part(3)}};
}

inline Floats all(float x) { return quarters<Floats>([&](int) { return vdupq_n_f32(x); }); }
inline Floats load(const float* at) { return quarters<Floats>([&](int i) { return vld1q_f32(at + 4 * i); }); }
inline Floats load(const float* at, Lanes known) {
  if (known == kLanes) return load(at);
  float some[kLanes] = {};
  std::copy_n(at, known, some);
  return load(some);
}
inline void store(float* to, Floats x) {
  for (int i = 0; i < 4; ++i) vst1q_f32(to + 4 * i, x.v[i]);
}
inline void store(float* to, Floats x, Lanes wanted) {
  if (wanted == kLanes) return store(to, x);
  float some[kLanes];
  store(some, x);
  std::copy_n(some, wanted, to);
}
inline Floats add(Floats a, Floats b) { return quarters<Floats>([&](int i) { return vaddq_f32(a.v[i], b.v[i]); }); }
inline Floats subtract(Floats a, Floats b) {
  return quarters<Floats>([&](int i) { return vsubq_f32(a.v[i], b.v[i]); });
}
inline Floats multiply(Floats a, Floats b) {
  return quarters<Floats>([&](int i) { return vmulq_f32(a.v[i], b.v[i]); });
}
inline Floats divide(Floats a, Floats b) { return quarters<Floats>([&](int i) { return vdivq_f32(a.v[i], b.v[i]); }); }
inline Floats smaller(Floats a, Floats b) {
  return quarters<Floats>([&](int i) { return vminq_f32(a.v[i], b.v[i]); });
}
inline Floats larger(Floats a, Floats b) { return quarters<Floats>([&](int i) { return vmaxq_f32(a.v[i], b.v[i]); }); }
inline Floats absolute(Floats a) { return quarters<Floats>([&](int i) { return vabsq_f32(a.v[i]); }); }
// a b + c, and c - a b, rounded once.
inline Floats multiply_add(Floats a, Floats b, Floats c) {
  return quarters<Floats>([&](int i) { return vfmaq_f32(c.v[i], a.v[i], b.v[i]); });
}
inline Floats subtract_product(Floats a, Floats b, Floats c) {
  return quarters<Floats>([&](int i) { return vfmsq_f32(c.v[i], a.v[i], b.v[i]); });
}
inline Floats nearest(Floats a) { return quarters<Floats>([&](int i) { return vrndnq_f32(a.v[i]); }); }
// 1 / x.
inline Floats reciprocal(Floats x) { return divide(all(1.0f), x); }
inline float largest_of(Floats a) {
  return vmaxvq_f32(vmaxq_f32(vmaxq_f32(a.v[0], a.v[1]), vmaxq_f32(a.v[2], a.v[3])));
}
inline float sum_of(Floats a) {
  return vaddvq_f32(vaddq_f32(vaddq_f32(a.v[0], a.v[1]), vaddq_f32(a.v[2], a.v[3])));
}

inline Ints all(int32_t x) { return quarters<Ints>([&](int) { return vdupq_n_s32(x); }); }
inline Ints load(const int32_t* at) { return quarters<Ints>([&](int i) { return vld1q_s32(at + 4 * i); }); }
inline void store(int32_t* to, Ints x) {
  for (int i = 0; i < 4; ++i) vst1q_s32(to + 4 * i, x.v[i]);
}
inline Ints add(Ints a, Ints b) { return quarters<Ints>([&](int i) { return vaddq_s32(a.v[i], b.v[i]); }); }
inline Ints to_ints(Floats a) { return quarters<Ints>([&](int i) { return vcvtnq_s32_f32(a.v[i]); }); }  // the nearest
inline Floats to_floats(Ints a) { return quarters<Floats>([&](int i) { return vcvtq_f32_s32(a.v[i]); }); }
inline int32_t sum_of(Ints a) {
  return vaddvq_s32(vaddq_s32(vaddq_s32(a.v[0], a.v[1]), vaddq_s32(a.v[2], a.v[3])));
}
// All bits of the first lanes.
inline uint32x4_t mask_of(Lanes lanes, int i) {
  const int32_t places[4] = {4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3};
  return vcgtq_s32(vdupq_n_s32(lanes), vld1q_s32(places));
}
// `b` in some lanes, `a` in the others.
inline Floats choose(Lanes lanes, Floats a, Floats b) {
  return quarters<Floats>([&](int i) { return vbslq_f32(mask_of(lanes, i), b.v[i], a.v[i]); });
}
inline Ints only(Lanes lanes, Ints a) {
  return quarters<Ints>([&](int i) { return vandq_s32(a.v[i], vreinterpretq_s32_u32(mask_of(lanes, i))); });
}
// p 2^n, where n is whole, from -126 to 128; two steps, since 2^128 is no number.
inline Floats times_power(Floats p, Floats n) {
  return quarters<Floats>([&](int i) {
    const auto power = [](int32x4_t exponent) {
      return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(exponent, vdupq_n_s32(127)), 23));
    };
    const int32x4_t whole = vcvtnq_s32_f32(n.v[i]), half = vshrq_n_s32(whole, 1);
    return vmulq_f32(vmulq_f32(p.v[i], power(half)), power(vsubq_s32(whole, half)));
  });
}
// The lower halves of `low`, and those of `high` above them.
inline Ints in_pairs(Ints low, Ints high) {
  return quarters<Ints>([&](int i) { return vsliq_n_s32(low.v[i], high.v[i], 16); });
}
inline void store_halves(int16_t* to, Ints a) {
  for (int i = 0; i < 4; ++i) vst1_s16(to + 4 * i, vmovn_s32(a.v[i]));
}

// One step of a fast Hadamard transform: of two lanes `kDistance` apart the lower gets the sum, the upper lower minus
// upper.
template <int kDistance>
Floats butterfly(Floats a) {
  if (kDistance >= 4) {
    constexpr int kApart = kDistance >= 4 ? kDistance / 4 : 1;
    return quarters<Floats>([&](int i) {
      const float32x4_t other = a.v[i ^ kApart];
      return i & kApart ? vsubq_f32(other, a.v[i]) : vaddq_f32(other, a.v[i]);
    });
  }
  return quarters<Floats>([&](int i) {
    const float32x4_t x = a.v[i], other = kDistance == 2 ? vextq_f32(x, x, 2) : vrev64q_f32(x);
    const float signs[4] = {1, kDistance == 1 ? -1.0f : 1.0f, kDistance == 2 ? -1.0f : 1.0f, -1};
    return vfmaq_f32(other, x, vld1q_f32(signs));
  });
}

}  // namespace pocketvlm
