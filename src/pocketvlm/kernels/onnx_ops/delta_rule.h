// DeltaRule: linear attention by the gated delta rule (Gated DeltaNet, Yang et al. 2024), with the gates that steer it.
//
// Inputs: query, key fp32 [B, S, G K], of length one, value fp32 [B, S, H V]; past fp32 [B, H, K, V]; gates fp32
// [B, S, 2 H], update rates, then decays, as they come from their product; bias, rate fp32 [H], of the decays.
// Outputs: fp32 [B, S, H V], and present fp32 [B, H, K, V] (may be where past is). Attributes: heads (H), key_heads (G).
//
// Each token changes a head's state M, and reads it:
//   d = e^(rate softplus(a + bias))      M' = d M + k u^T, where u = sigmoid(b) (v - d M^T k)
//   out = M'^T q / sqrt(K)
// Columns of M know nothing of each other, so that a prompt goes through one stripe of them at a time, which stays in the
// first cache (16 KiB at most of keys 128 wide). Some tokens are taken at once (T): their keys and queries are multiplied
// by the state M before all of them, and what each owes to those beside it comes from the products of their keys; so M is
// read twice and written once for T tokens. With D(i, j) the product of the decays after j up to i, and D(i) of those up
// to i,
//   u(i) = sigmoid(b(i)) (v(i) - D(i) M^T k(i) - sum of D(i, j) k(i)^T k(j) u(j) over j < i)
//   out(i) sqrt(K) = D(i) M^T q(i) + sum of D(i, j) q(i)^T k(j) u(j) over j <= i
//   M' = D(T) M + sum of D(T, j) k(j) u(j)^T
// Sums are had in another order then, which differs by a rounding; few tokens (steps, drafts) are taken one by one.
//
// Shapes:  B sequences · S new tokens · H heads, of which H / G share queries and keys · K key width · V value width
//          T tokens at once
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "call.h"
#include "vectors.h"

#define POCKETVLM_UNROLL _Pragma("GCC unroll 8")  // so that arrays of registers are registers

namespace pocketvlm {

class DeltaRule {
 public:
  static constexpr const char* kName = "DeltaRule";
  static constexpr size_t kInputs = 7, kRequired = 7, kOutputs = 2;
  static constexpr int64_t kMostKeys = 256;
  static int input_type(size_t) { return ort::kFloat; }

  ort::Status read(const ort::Api& api, const ort::Info* info) {
    if (auto status = api.attribute(info, "heads", &heads_)) return status;
    if (auto status = api.attribute(info, "key_heads", &key_heads_)) return status;
    const bool fits = key_heads_ > 0 && heads_ >= key_heads_ && heads_ % key_heads_ == 0;
    return fits ? nullptr : api.error(ort::kInvalidArgument, "DeltaRule: attributes that do not fit each other");
  }

  ort::Status compute(const ort::Api& api, ort::Context* context) const {
    Inputs in;
    size_t index = 0;
    for (Tensor* tensor : {&in.query, &in.key, &in.value, &in.past, &in.gates, &in.bias, &in.rate})
      if (auto status = pocketvlm::read(api, context, index++, tensor)) return status;
    if (!fits(in)) return api.error(ort::kInvalidArgument, "DeltaRule: inputs that do not fit each other");
    in.out = in.value, in.present = in.past;
    index = 0;
    for (Tensor* tensor : {&in.out, &in.present})
      if (auto status = allocate(api, context, index++, tensor)) return status;
    return parallel_for(api, context, in.value.dimensions[0] * heads_, [&](int64_t task) { run(in, task); });
  }

 private:
  // Each token has two sums under way for each vector of columns, all of them in registers: T of a prompt, and columns
  // at once; then those of a token alone.
  static constexpr int kTogether = kSums == 16 ? 4 : 2;
  static constexpr int kStripe = kSums / (2 * kTogether) * kLanes;
  static constexpr int kWide = kSums / 2 * kLanes;
  // Of a prompt, before the next stripe: their keys and queries stay in the second cache meanwhile.
  static constexpr int64_t kTokens = 64;

  struct Inputs {
    Tensor query, key, value, past, gates, bias, rate, out, present;
  };

  // What some tokens bring to a head, and where their results go.
  template <int kCount>
  struct Group {
    const float *query[kCount], *key[kCount], *value[kCount];
    float* out[kCount];
    float update[kCount];                                 // sigmoid(b)
    float decay[kCount], after[kCount];                   // D(i), D(T, i)
    float keys[kCount][kCount], queries[kCount][kCount];  // products with keys up to i, times D(i, j)
  };

  bool fits(const Inputs& in) const {
    const int64_t batch = in.value.dimensions[0], keys = in.past.dimensions[2], values = in.past.last();
    bool is_fit = in.value.count == 3 && in.past.count == 4 && in.past.dimensions[0] == batch &&
                  in.past.dimensions[1] == heads_ && keys > 0 && keys % kLanes == 0 && keys <= kMostKeys &&
                  values > 0 && values % kLanes == 0 && in.value.last() == heads_ * values;
    for (const Tensor* one : {&in.query, &in.key, &in.gates})
      is_fit = is_fit && one->count == 3 && std::equal(one->dimensions, one->dimensions + 2, in.value.dimensions) &&
               one->last() == (one == &in.gates ? 2 * heads_ : key_heads_ * keys);
    for (const Tensor* one : {&in.bias, &in.rate}) is_fit = is_fit && one->count == 1 && one->last() == heads_;
    return is_fit;
  }

  // One head of one sequence.
  void run(const Inputs& in, int64_t task) const {
    const int64_t count = in.value.dimensions[1], keys = in.past.dimensions[2], values = in.past.last();
    const int64_t row = task / heads_ * count, h = task % heads_, place = task * keys * values;
    const float* from = in.past.as<float>() + place;
    float* to = in.present.as<float>() + place;
    if (count == 0) std::copy_n(from, from == to ? 0 : keys * values, to);
    if (count == 1) return step(group<1>(in, row, h), from, to, keys, values);
    Group<kTogether> groups[kTokens / kTogether];
    Group<1> alone[kTokens];
    for (int64_t first = 0; first < count; first += kTokens, from = to) {
      const int64_t some = std::min(kTokens, count - first);
      const int64_t together = count > kFewTokens ? some / kTogether : 0, left = some - together * kTogether;
      for (int64_t i = 0; i < together; ++i) groups[i] = group<kTogether>(in, row + first + i * kTogether, h);
      for (int64_t i = 0; i < left; ++i) alone[i] = group<1>(in, row + first + some - left + i, h);
      const auto stripe = [&](auto vectors, int64_t column) {
        constexpr int kColumns = vectors * kLanes;
        alignas(64) float state[kMostKeys * kColumns];
        copy<kColumns>(from + column, values, state, kColumns, keys);
        for (int64_t i = 0; i < together; ++i) advance<vectors>(groups[i], column, state, kColumns, state, kColumns, keys);
        for (int64_t i = 0; i < left; ++i) advance<vectors>(alone[i], column, state, kColumns, state, kColumns, keys);
        copy<kColumns>(state, kColumns, to + column, values, keys);
      };
      in_stripes<kStripe>(values, stripe);
    }
  }

  // A token alone, with the state where it is.
  static void step(const Group<1>& token, const float* from, float* to, int64_t keys, int64_t values) {
    in_stripes<kWide>(values, [&](auto vectors, int64_t column) {
      advance<vectors>(token, column, from + column, values, to + column, values, keys);
    });
  }

  // `work(vectors, column)` for stripes of so many columns, then of 16.
  template <int kColumns, typename Work>
  static void in_stripes(int64_t values, const Work& work) {
    int64_t column = 0;
    for (; column + kColumns <= values; column += kColumns)
      work(std::integral_constant<int, kColumns / kLanes>(), column);
    for (; column < values; column += kLanes) work(std::integral_constant<int, 1>(), column);
  }

  template <int kColumns>
  static void copy(const float* from, int64_t from_stride, float* to, int64_t to_stride, int64_t rows) {
    for (int64_t k = 0; k < rows; ++k)
      for (int c = 0; c < kColumns; c += kLanes) store(to + k * to_stride + c, load(from + k * from_stride + c));
  }

  static float product(const float* a, const float* b, int64_t count) {
    Floats sum = all(0.0f);
    for (int64_t i = 0; i < count; i += kLanes) sum = multiply_add(load(a + i), load(b + i), sum);
    return sum_of(sum);
  }

  // The tokens from `row` on.
  template <int kCount>
  Group<kCount> group(const Inputs& in, int64_t row, int64_t h) const {
    const int64_t keys = in.past.dimensions[2], values = in.past.last(), shared = h / (heads_ / key_heads_);
    const float size = 1.0f / std::sqrt(static_cast<float>(keys));
    Group<kCount> out;
    float decays[kCount];
    for (int i = 0; i < kCount; ++i, ++row) {
      const float* gates = in.gates.as<float>() + row * 2 * heads_;
      const float a = gates[heads_ + h] + in.bias.as<float>()[h];
      const float softplus = std::max(a, 0.0f) + std::log1p(std::exp(-std::fabs(a)));
      decays[i] = std::exp(in.rate.as<float>()[h] * softplus);
      out.update[i] = 1.0f / (1.0f + std::exp(-gates[h]));
      out.query[i] = in.query.as<float>() + (row * key_heads_ + shared) * keys;
      out.key[i] = in.key.as<float>() + (row * key_heads_ + shared) * keys;
      out.value[i] = in.value.as<float>() + (row * heads_ + h) * values;
      out.out[i] = in.out.as<float>() + (row * heads_ + h) * values;
      float decay = 1.0f;  // D(i, j)
      for (int j = i; j >= 0; --j) {
        out.queries[i][j] = size * decay * product(out.query[i], out.key[j], keys);
        out.keys[i][j] = j < i ? decay * product(out.key[i], out.key[j], keys) : 0.0f;
        out.after[j] = decay;
        decay *= decays[j];
      }
      out.decay[i] = decay;
    }
    return out;
  }

  // Some columns through some tokens.
  template <int kVectors, int kCount>
  static void advance(const Group<kCount>& group, int64_t column, const float* from, int64_t from_stride, float* to,
                      int64_t to_stride, int64_t keys) {
    Floats by_key[kCount][kVectors], by_query[kCount][kVectors];  // M^T k, M^T q
    POCKETVLM_UNROLL for (int i = 0; i < kCount; ++i)
      POCKETVLM_UNROLL for (int c = 0; c < kVectors; ++c) by_key[i][c] = by_query[i][c] = all(0.0f);
    for (int64_t k = 0; k < keys; ++k) {
      Floats state[kVectors];
      POCKETVLM_UNROLL for (int c = 0; c < kVectors; ++c) state[c] = load(from + k * from_stride + c * kLanes);
      POCKETVLM_UNROLL for (int i = 0; i < kCount; ++i) {
        const Floats key = all(group.key[i][k]), query = all(group.query[i][k]);
        POCKETVLM_UNROLL for (int c = 0; c < kVectors; ++c) {
          by_key[i][c] = multiply_add(key, state[c], by_key[i][c]);
          by_query[i][c] = multiply_add(query, state[c], by_query[i][c]);
        }
      }
    }
    const float size = 1.0f / std::sqrt(static_cast<float>(keys));
    Floats updates[kCount][kVectors];
    POCKETVLM_UNROLL for (int i = 0; i < kCount; ++i)
      POCKETVLM_UNROLL for (int c = 0; c < kVectors; ++c) {
        const int64_t place = column + c * kLanes;
        Floats value = subtract_product(all(group.decay[i]), by_key[i][c], load(group.value[i] + place));
        Floats out = multiply(all(size * group.decay[i]), by_query[i][c]);
        POCKETVLM_UNROLL for (int j = 0; j < i; ++j) value = subtract_product(all(group.keys[i][j]), updates[j][c], value);
        updates[i][c] = multiply(all(group.update[i]), value);
        POCKETVLM_UNROLL for (int j = 0; j <= i; ++j) out = multiply_add(all(group.queries[i][j]), updates[j][c], out);
        store(group.out[i] + place, out);
      }
    POCKETVLM_UNROLL for (int i = 0; i < kCount; ++i)
      POCKETVLM_UNROLL for (int c = 0; c < kVectors; ++c) updates[i][c] = multiply(all(group.after[i]), updates[i][c]);
    const Floats decay = all(group.decay[kCount - 1]);
    for (int64_t k = 0; k < keys; ++k) {
      Floats state[kVectors];
      POCKETVLM_UNROLL for (int c = 0; c < kVectors; ++c)
        state[c] = multiply(decay, load(from + k * from_stride + c * kLanes));
      POCKETVLM_UNROLL for (int i = 0; i < kCount; ++i) {
        const Floats key = all(group.key[i][k]);
        POCKETVLM_UNROLL for (int c = 0; c < kVectors; ++c) state[c] = multiply_add(key, updates[i][c], state[c]);
      }
      POCKETVLM_UNROLL for (int c = 0; c < kVectors; ++c) store(to + k * to_stride + c * kLanes, state[c]);
    }
  }

  int64_t heads_ = 0, key_heads_ = 0;
};

}  // namespace pocketvlm
