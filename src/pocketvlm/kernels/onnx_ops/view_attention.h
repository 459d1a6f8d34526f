// ViewAttention: softmax(Q K^T / sqrt(E)) V inside each view, in 16 bits: twice as many products a cycle as in fp32, and
// exact beside the 8 bits of the products around it.
//
// Input: queries, keys and values side by side, fp32 [V, N, 3 D]. Output: fp32 [V, N, D]. Attribute: heads.
// Each query and key is rounded to 5,000 steps of its own largest value, each channel of the values to 1,023 of its own,
// the exponentials to 32,767 of the largest of a panel: a key that draws nearly all attention to itself costs only its
// neighbours precision. What a query gives to all keys together is 1 after rounding.
//
// Shapes:  V views · N tokens of each · D width · E head dim
#pragma once

#include <algorithm>
#include <atomic>

#include "call.h"
#include "view_vectors.h"
#if POCKETVLM_TILES
#include "view_tiles.h"
#endif

namespace pocketvlm {

class ViewAttention {
 public:
  static constexpr const char* kName = "ViewAttention";
  static constexpr size_t kInputs = 1, kRequired = 1, kOutputs = 1;
  static int input_type(size_t) { return ort::kFloat; }

  ort::Status read(const ort::Api& api, const ort::Info* info) {
    if (auto status = api.attribute(info, "heads", &heads_)) return status;
    return heads_ > 0 ? nullptr : api.error(ort::kInvalidArgument, "ViewAttention: attributes that do not fit each other");
  }

  ort::Status compute(const ort::Api& api, ort::Context* context) const {
    Tensor joined;
    if (auto status = pocketvlm::read(api, context, 0, &joined)) return status;
    const int64_t width = joined.last() / 3, dim = width / heads_;
    if (joined.count != 3 || joined.last() != 3 * dim * heads_ || dim < 2 || dim % 2 || dim > kMostDim)
      return api.error(ort::kInvalidArgument, "ViewAttention: inputs that do not fit each other");
    Tensor out = joined;
    out.dimensions[2] = width;
    if (auto status = allocate(api, context, 0, &out)) return status;
    const int64_t tokens = joined.dimensions[1];
    if (!tokens) return nullptr;
#if POCKETVLM_TILES
    if (TiledView::suits(tokens)) return attend<TiledView>(api, context, joined, out);
#endif
    return attend<VectorView>(api, context, joined, out);
  }

 private:
  // By the `View` that a thread keeps as its scratch.
  template <typename View>
  ort::Status attend(const ort::Api& api, ort::Context* context, const Tensor& joined, const Tensor& out) const {
    const int64_t tokens = joined.dimensions[1], width = out.last(), stride = 3 * width, dim = width / heads_;
    std::atomic<bool> is_full{false};
    const auto run = [&](int64_t task) {
      static thread_local View scratch;
      const int64_t view = task / heads_, head = task % heads_;
      const float* q = joined.as<float>() + view * tokens * stride + head * dim;
      float* to = out.as<float>() + view * tokens * width + head * dim;
      if (!scratch.grow(tokens, dim)) return is_full.store(true);
      scratch.pack(q + width, q + 2 * width, stride);
      for (int64_t first = 0; first < tokens; first += scratch.kQueries) {
        const int64_t count = std::min(scratch.kQueries, tokens - first);
        for (int64_t t = first + count; t < std::min(first + 2 * count, tokens); ++t) ask_for(q + t * stride, dim);
        scratch.attend(q + first * stride, stride, count, to + first * width, width);
      }
    };
    auto status = parallel_for(api, context, joined.dimensions[0] * heads_, run);
    return status || !is_full ? status : api.error(ort::kFail, "ViewAttention: out of memory");
  }

  int64_t heads_ = 0;
};

}  // namespace pocketvlm
