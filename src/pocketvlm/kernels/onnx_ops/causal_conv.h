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

    const auto run = [&](int64_t task) {
      const int64_t b = task / (channels / head_), first = task % (channels / head_) * head_;
      Head head;
      head.x = x.as<float>() + b * count * x.last() + first;
      head.stride = x.last();
      head.past = past.as<float>() + b * keep * channels + first;
      head.present = present.as<float>() + b * keep * channels + first;
      head.taps = taps.as<float>() + first;
      head.channels = channels;
      head.count = count;
      head.keep = keep;
      const Tensor& out = first < key_width_ ? query : first < 2 * key_width_ ? key : value;
      const int64_t place = first < 2 * key_width_ ? first % key_width_ : first - 2 * key_width_;
      head.out_stride = out.last();
      head.out = out.as<float>() + b * count * out.last() + place;
      convolve(head, first < 2 * key_width_);
    };
    const int64_t total = batch * (channels / head_);
    // A step of one sequence takes as long as other threads to begin.
    if (batch * count == 1)
      for (int64_t task = 0; task < total; ++task) run(task);
    else
      return parallel_for(api, context, total, run);
    return nullptr;
  }

 private:
  // E channels of one sequence.
  struct Head {
    const float *x, *past, *taps;
    float *out, *present;
    int64_t stride, out_stride, channels, count, keep;
  };

  void convolve(const Head& head, bool has_length_one) const {
    for (int64_t c = 0; c < head_; c += kLanes) {
      Floats taps[kTaps], window[kTaps];
      for (int64_t w = 0; w <= head.keep; ++w) taps[w] = load(head.taps + w * head.channels + c);
      for (int64_t w = 0; w < head.keep; ++w) window[w] = load(head.past + w * head.channels + c);
      for (int64_t s = 0; s < head.count; ++s) {
        window[head.keep] = load(head.x + s * head.stride + c);
        Floats sum = multiply(taps[0], window[0]);
        for (int64_t w = 1; w <= head.keep; ++w) sum = multiply_add(taps[w], window[w], sum);
        for (int64_t w = 0; w < head.keep; ++w) window[w] = window[w + 1];
        store(head.out + s * head.out_stride + c, silu(sum));
      }
      for (int64_t w = 0; w < head.keep; ++w) store(head.present + w * head.channels + c, window[w]);
    }
    for (int64_t s = 0; has_length_one && s < head.count; ++s) {
      float* out = head.out + s * head.out_stride;
      const Floats scale = all(1.0f / std::sqrt(sum_of_squares(out, head_) + epsilon_));
      for (int64_t c = 0; c < head_; c += kLanes)
        store(out + c, multiply(load(out + c), scale));
    }
  }

  int64_t key_width_ = 0, head_ = 0;
  float epsilon_ = 0;
};

}  // namespace pocketvlm
