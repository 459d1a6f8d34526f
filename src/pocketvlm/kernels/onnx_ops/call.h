// Inputs and outputs of a running operator.
#pragma once

#include "onnxruntime_abi.h"

namespace pocketvlm {

// So many new tokens of a sequence are computed as steps compute them, to the bit: as many as one step scores with the
// longest draft, so that drafts change no answer.
constexpr int64_t kFewTokens = 65;

// A tensor: where it is and how large; `data` is null where an optional input is missing.
struct Tensor {
  void* data = nullptr;
  int64_t dimensions[8] = {};
  size_t count = 0;

  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
  int64_t last() const { return count ? dimensions[count - 1] : 0; }
  // Product of all dimensions but the last.
  int64_t rows() const {
    int64_t product = 1;
    for (size_t i = 0; i + 1 < count; ++i) product *= dimensions[i];
    return product;
  }
};

inline ort::Status read(const ort::Api& api, const ort::Context* context, size_t index, Tensor* out) {
  const ort::Value* value = nullptr;
  if (auto status = api.input(context, index, &value)) return status;
  if (!value) return nullptr;
  if (auto status = api.data(value, &out->data)) return status;
  ort::Shape* shape = nullptr;
  if (auto status = api.shape_of(value, &shape)) return status;
  auto status = api.dimension_count(shape, &out->count);
  if (!status && out->count > 8) status = api.error(ort::kInvalidArgument, "a tensor of more than 8 dimensions");
  if (!status) status = api.dimensions(shape, out->dimensions, out->count);
  api.release(shape);
  return status;
}

// Allocates output `index` in the shape that `out` has.
inline ort::Status allocate(const ort::Api& api, ort::Context* context, size_t index, Tensor* out) {
  ort::Value* value = nullptr;
  if (auto status = api.output(context, index, out->dimensions, out->count, &value)) return status;
  return api.data(value, &out->data);
}

// `work(i)` for every i below `total`, on the session's threads; a single one stays on this thread.
template <typename Work>
ort::Status parallel_for(const ort::Api& api, const ort::Context* context, int64_t total, const Work& work) {
  if (total == 1) return work(0), nullptr;
  const auto run = [](void* data, size_t i) { (*static_cast<const Work*>(data))(static_cast<int64_t>(i)); };
  return api.parallel_for(context, run, static_cast<size_t>(total), const_cast<Work*>(&work));
}

}  // namespace pocketvlm
