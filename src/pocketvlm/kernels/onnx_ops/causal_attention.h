// CausalAttention: softmax attention of new tokens over everything before them, with groups of heads that share keys.
//
// Inputs: queries fp32 [B, S, H E], keys and values fp32 [B, S, G E], all rotated; the cache's keys and values fp32
// [B, G, L, E]; seqlens_k int32 [B], the tokens of each sequence with the new ones, less one (as GroupQueryAttention
// has them). Outputs: fp32 [B, S, H E], and the cache with the new rows (may be where it was: then only they are
// written). Attributes: num_heads (H), kv_num_heads (G).
//
// Up to 65 new tokens (steps, drafts) are computed in fp32, keys in stretches that threads share (attention_rows.h); more
// of them, prompts, in 16 bits, and scores of tokens that see more than 8,192 in 8 (prompt_attention.h). What a token gets
// does not depend on tokens after it, nor on threads; it does by a rounding on whether it came with many.
//
// Shapes:  B sequences · S new tokens of each · H heads · G heads of keys and values · E head dim · L capacity
//          R rows: queries of S tokens and of the H / G heads of a group, token by token
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>
#include <thread>
#include <vector>

#include "attention_rows.h"
#include "prompt_attention.h"
#include "call.h"

namespace pocketvlm {

class CausalAttention {
 public:
  static constexpr const char* kName = "CausalAttention";
  static constexpr size_t kInputs = 6, kRequired = 6, kOutputs = 3;
  static int input_type(size_t index) { return index == 5 ? ort::kInt32 : ort::kFloat; }

  ort::Status read(const ort::Api& api, const ort::Info* info) {
    if (auto status = api.attribute(info, "num_heads", &heads_)) return status;
    if (auto status = api.attribute(info, "kv_num_heads", &groups_)) return status;
    const bool fits = groups_ > 0 && heads_ >= groups_ && heads_ % groups_ == 0;
    return fits ? nullptr : api.error(ort::kInvalidArgument, "CausalAttention: attributes that do not fit each other");
  }

  ort::Status compute(const ort::Api& api, ort::Context* context) const {
    Tensor queries, keys, values, past[2], lengths;
    size_t index = 0;
    for (Tensor* tensor : {&queries, &keys, &values, &past[0], &past[1], &lengths})
      if (auto status = pocketvlm::read(api, context, index++, tensor)) return status;
    const int64_t batch = queries.dimensions[0], count = queries.dimensions[1], dim = past[0].last();
    if (!fits(queries, keys, values, past, lengths))
      return api.error(ort::kInvalidArgument, "CausalAttention: inputs that do not fit each other");
    const int64_t capacity = past[0].dimensions[2];
    for (int64_t b = 0; b < batch; ++b)
      if (const int64_t total = lengths.as<int32_t>()[b] + 1; total < count || total > capacity)
        return api.error(ort::kInvalidArgument, "CausalAttention: more tokens than the cache has room for");
    Tensor out = queries, present[2] = {past[0], past[1]};
    index = 0;
    for (Tensor* tensor : {&out, &present[0], &present[1]})
      if (auto status = allocate(api, context, index++, tensor)) return status;
    if (!batch || !count) return nullptr;

    std::vector<Queries> all;
    try {
      all.reserve(batch * groups_);
    } catch (const std::bad_alloc&) {
      return api.error(ort::kFail, kOutOfMemory);
    }
    for (int64_t b = 0; b < batch; ++b) {
      const int64_t before = lengths.as<int32_t>()[b] + 1 - count;
      for (int64_t g = 0; g < groups_; ++g) {
        const int64_t place = (b * groups_ + g) * capacity * dim, shared = heads_ / groups_;
        const float* cache[2];
        for (const int i : {0, 1}) {
          float* to = present[i].as<float>() + place;
          const float* from = past[i].as<float>() + place;
          if (to != from) std::memcpy(to, from, before * dim * sizeof(float));
          const float* rows = (i ? values : keys).as<float>() + b * count * groups_ * dim + g * dim;
          for (int64_t s = 0; s < count; ++s)
            std::memcpy(to + (before + s) * dim, rows + s * groups_ * dim, dim * sizeof(float));
          cache[i] = to;
        }
        const int64_t first = (b * count * heads_ + g * shared) * dim;
        all.push_back({queries.as<float>() + first, out.as<float>() + first, cache[0], cache[1], heads_ * dim, dim,
                       shared, count, before});
      }
    }
    std::atomic<bool> is_full{false};
    auto* run = count <= kFewTokens ? by_stretches : by_tiles;
    if (auto status = run(api, context, all, &is_full)) return status;
    return is_full ? api.error(ort::kFail, kOutOfMemory) : nullptr;
  }

 private:
  static constexpr const char* kOutOfMemory = "CausalAttention: out of memory";

  bool fits(const Tensor& queries, const Tensor& keys, const Tensor& values, const Tensor* past,
            const Tensor& lengths) const {
    const int64_t dim = past[0].last();
    bool is_fit = queries.count == 3 && (dim == 64 || dim == 128 || dim == 256) &&
                  queries.last() == heads_ * dim && lengths.count == 1 && lengths.dimensions[0] == queries.dimensions[0];
    for (const Tensor* one : {&keys, &values})
      is_fit = is_fit && one->count == 3 && one->last() == groups_ * dim &&
               std::equal(one->dimensions, one->dimensions + 2, queries.dimensions);
    for (const int i : {0, 1})
      is_fit = is_fit && past[i].count == 4 && past[i].dimensions[0] == queries.dimensions[0] &&
               past[i].dimensions[1] == groups_ && std::equal(past[i].dimensions, past[i].dimensions + 4, past[0].dimensions);
    return is_fit;
  }

  using All = std::vector<Queries>;

  // Stretches of keys side by side, then what they found together.
  static ort::Status by_stretches(const ort::Api& api, ort::Context* context, const All& all, std::atomic<bool>* is_full) {
    std::vector<int64_t> firsts{0};  // of each queries' stretches
    std::vector<float> found;
    const int64_t width = all[0].rows() * (all[0].dim + 2);
    try {
      for (const Queries& one : all) firsts.push_back(firsts.back() + stretches(one));
      found.resize(firsts.back() * width);
    } catch (const std::bad_alloc&) {
      return is_full->store(true), nullptr;
    }
    const auto look = [&](int64_t task) {
      const int64_t i = std::upper_bound(firsts.begin(), firsts.end(), task) - firsts.begin() - 1;
      attend_stretch(all[i], task - firsts[i], found.data() + task * width);
    };
    if (auto status = parallel_for(api, context, firsts.back(), look)) return status;
    for (size_t i = 0; i < all.size(); ++i)
      join_stretches(all[i], found.data() + firsts[i] * width, firsts[i + 1] - firsts[i]);
    return nullptr;
  }

  static ort::Status by_tiles(const ort::Api& api, ort::Context* context, const All& all, std::atomic<bool>* is_full) {
    const int64_t rows = all[0].rows(), total = rows * static_cast<int64_t>(all.size());
    const int64_t each = task_rows(total, std::thread::hardware_concurrency()), tasks = (rows + each - 1) / each;
    return parallel_for(api, context, static_cast<int64_t>(all.size()) * tasks, [&](int64_t task) {
      const int64_t first = task % tasks * each;
      if (!attend_prompt(all[task / tasks], first, std::min(rows, first + each))) is_full->store(true);
    });
  }

  int64_t heads_ = 0, groups_ = 0;
};

}  // namespace pocketvlm
