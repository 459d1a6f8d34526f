// CausalConv: the short convolution of linear attention, its SiLU, and heads of length one, in one node instead of
// fourteen.
//
// Inputs: x fp32 [B, S, X], whose first C channels are meant; past fp32 [B, W - 1, C]; taps fp32 [W, C].
// Outputs: query, key fp32 [B, S, Q], value fp32 [B, S, C - 2 Q], present fp32 [B, W - 1, C] (may be where past is).
// Attributes: key_width (Q), head (E), epsilon (of a head's squared length).
//
// Shapes:  B sequences · S new tokens · W taps · C channels, of which Q queries, Q keys, then values · E head dim
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "call.h"
#include "vector_math.h"

namespace pocketvlm {

class CausalConv {
 public:
  static constexpr const char* kName = "CausalConv";
  static constexpr size_t kInputs = 3, kRequired = 3, kOutputs = 4;
  static constexpr int64_t kTaps = 8;  // most
  static int input_type(size_t) { return ort::kFloat; }

  ort::Status read(const ort::Api& api, const ort::Info* info) {
    if (auto status = api.attribute(info, "key_width", &key_width_)) return status;
    if (auto status = api.attribute(info, "head", &head_)) return status;
    if (auto status = api.attribute(info, "epsilon", &epsilon_)) return status;
    const bool fits = head_ > 0 && head_ % kLanes == 0 && key_width_ > 0 && key_width_ % head_ == 0;
    return fits ? nullptr : api.error(ort::kInvalidArgument, "CausalConv: attributes that do not fit each other");
  }

  ort::Status compute(const ort::Api& api, ort::Context* context) const {
    Tensor x, past, taps;
    size_t index = 0;
    for (Tensor* tensor : {&x, &past, &taps})
      if (auto status = pocketvlm::read(api, context, index++, tensor)) return status;
    const int64_t batch = x.dimensions[0], count = x.dimensions[1], channels = past.last();
    const int64_t keep = past.dimensions[1], values = channels - 2 * key_width_;
    if (x.count != 3 || past.count != 3 || taps.count != 2 || past.dimensions[0] != batch || keep < 1 ||
        keep >= kTaps || taps.dimensions[0] != keep + 1 || taps.last() != channels || x.last() < channels ||
        values <= 0 || values % head_)
      return api.error(ort::kInvalidArgument, "CausalConv: inputs that do not fit each other");
    Tensor query = x, key, value, present = past;
    query.dimensions[2] = key_width_;
    key = value = query;
    value.dimensions[2] = values;
    index = 0;
    for (Tensor* tensor : {&query, &key, &value, &present})
      if (auto status = allocate(api, context, index++, tensor)) return status;

    // A sequence's last rows, of some channels, behind everything else of these: they may go where the past is.
    const auto remember = [&](int64_t b, int64_t from, int64_t to) {
      for (int64_t w = 0; w < keep; ++w) {
        const int64_t at = count + w - keep;
        std::memmove(present.as<float>() + (b * keep + w) * channels + from,
                     from + (at < 0 ? past.as<float>() + (b * keep + keep + at) * channels
                                    : x.as<float>() + (b * count + at) * x.last()),
                     (to - from) * sizeof(float));
      }
    };
    // Some tokens at a time: rows stand far apart, so that a head's channels of all of them would not stay in a cache.
    // Few tokens are shared out by their heads instead.
    const int64_t heads = channels / head_, stretches = (count + kTokens - 1) / kTokens;
    const int64_t parts = stretches == 1 ? std::min(heads, kParts) : 1;
    const auto run = [&](int64_t task) {
      const int64_t part = task % parts, stretch = task / parts % stretches, b = task / (parts * stretches);
      const int64_t from = heads * part / parts * head_, to = heads * (part + 1) / parts * head_;
      for (int64_t c = from; c < to; c += head_) {
        const Tensor& out = c < key_width_ ? query : c < 2 * key_width_ ? key : value;
        const int64_t place = c < 2 * key_width_ ? c % key_width_ : c - 2 * key_width_;
        for (int64_t s = stretch * kTokens; s < std::min((stretch + 1) * kTokens, count); ++s) {
          const float* rows[kTaps];
          for (int64_t w = 0; w <= keep; ++w) {
            const int64_t at = s + w - keep;
            rows[w] = c + (at < 0 ? past.as<float>() + (b * keep + keep + at) * channels
                                  : x.as<float>() + (b * count + at) * x.last());
          }
          convolve(rows, taps.as<float>() + c, channels, keep, out.as<float>() + (b * count + s) * out.last() + place,
                   c < 2 * key_width_);
        }
      }
      if (stretches == 1) remember(b, from, to);
    };
    if (auto status = parallel_for(api, context, batch * stretches * parts, run)) return status;
    if (stretches != 1)
      for (int64_t b = 0; b < batch; ++b) remember(b, 0, channels);
    return nullptr;
  }

 private:
  static constexpr int64_t kTokens = 32, kParts = 8;  // of a task; of a sequence's heads

  // A head's channels of one token: `rows` are the inputs that the taps meet.
  void convolve(const float* const* rows, const float* taps, int64_t channels, int64_t keep, float* out,
                bool has_length_one) const {
    Floats squares = all(0.0f);
    for (int64_t c = 0; c < head_; c += kLanes) {
      Floats sum = multiply(load(taps + c), load(rows[0] + c));
      for (int64_t w = 1; w <= keep; ++w) sum = multiply_add(load(taps + w * channels + c), load(rows[w] + c), sum);
      const Floats found = silu(sum);
      squares = multiply_add(found, found, squares);
      store(out + c, found);
    }
    if (!has_length_one) return;
    const Floats scale = all(1.0f / std::sqrt(sum_of(squares) + epsilon_));
    for (int64_t c = 0; c < head_; c += kLanes) store(out + c, multiply(load(out + c), scale));
  }

  int64_t key_width_ = 0, head_ = 0;
  float epsilon_ = 0;
};

}  // namespace pocketvlm
