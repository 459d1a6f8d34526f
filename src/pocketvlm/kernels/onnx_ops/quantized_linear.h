// QuantizedLinear: y = f(x) W^T in one node, where standard operators take up to fourteen.
//
// Inputs: x fp32 [..., X]; values uint8 and scales fp32 as in quantized_product.h; gate fp32 [..., G], norm fp32 [E] and
// bias fp32 [N], all three optional. Output: fp32 [..., N].
// Attributes: bits (8 or 4), K, N, block (inputs that share a scale); of f: rotate (1: mix 32 inputs at a time),
// activation (0 none, 1 SiLU, 2 sigmoid), x_offset and gate_offset (where in their rows the K values begin),
// head (E, 0 for no norm), epsilon (of the norm); gelu (1: of what comes out).
#pragma once

#include "buffer.h"
#include "call.h"
#include "gate.h"
#include "quantized_product.h"
#if POCKETVLM_TILES
#include "tile_product.h"
#endif

namespace pocketvlm {

class QuantizedLinear {
 public:
  static constexpr const char* kName = "QuantizedLinear";
  static constexpr size_t kInputs = 6, kRequired = 3, kOutputs = 1;
  static int input_type(size_t index) { return index == 1 ? ort::kUint8 : ort::kFloat; }

  ort::Status read(const ort::Api& api, const ort::Info* info) {
    int64_t activation, rotate, gelu;
    const std::pair<const char*, int64_t*> attributes[] = {
        {"bits", &bits_},    {"K", &size_.inputs},  {"N", &size_.outputs},       {"block", &size_.block},
        {"rotate", &rotate}, {"head", &gate_.head}, {"activation", &activation}, {"x_offset", &x_offset_},
        {"gate_offset", &gate_offset_}, {"gelu", &gelu}};
    for (const auto& [name, place] : attributes)
      if (auto status = api.attribute(info, name, place)) return status;
    if (auto status = api.attribute(info, "epsilon", &gate_.epsilon)) return status;
    gate_.activation = static_cast<Activation>(activation);
    gate_.rotates = rotate, has_gelu_ = gelu;
    const bool fits = (bits_ == 8 || bits_ == 4) && size_.inputs >= kLanes && size_.inputs % kLanes == 0 &&
                      size_.outputs > 0 && size_.block >= kLanes && size_.block % kLanes == 0 &&
                      (!rotate || size_.inputs % kMixed == 0) &&
                      size_.inputs % size_.block == 0 && activation >= 0 && activation <= 2 && gate_.head >= 0 &&
                      gate_.head % kLanes == 0 && (!gate_.head || size_.inputs % gate_.head == 0) && x_offset_ >= 0 &&
                      gate_offset_ >= 0;
    return fits ? nullptr : api.error(ort::kInvalidArgument, "QuantizedLinear: attributes that do not fit each other");
  }

  ort::Status compute(const ort::Api& api, ort::Context* context) const {
    Tensor x, values, scales, gate, norm, bias;
    size_t index = 0;
    for (Tensor* tensor : {&x, &values, &scales, &gate, &norm, &bias})
      if (auto status = pocketvlm::read(api, context, index++, tensor)) return status;
    const bool is_gated = gate_.activation != Activation::kNone;
    if (x.last() < x_offset_ + size_.inputs || (is_gated && gate.last() < gate_offset_ + size_.inputs) ||
        (is_gated && gate.rows() != x.rows()) || (gate_.head && norm.last() != gate_.head) ||
        (bias.data && bias.last() != size_.outputs))
      return api.error(ort::kInvalidArgument, "QuantizedLinear: inputs of another size than K says");
    const int64_t panels = (size_.outputs + kPanel - 1) / kPanel;
    if (values.rows() * values.last() != panels * kPanel * size_.inputs * bits_ / 8 ||
        scales.rows() * scales.last() != panels * kPanel * size_.blocks())
      return api.error(ort::kInvalidArgument, "QuantizedLinear: weights of another size than N, K and block say");
    Tensor out = x;
    out.dimensions[out.count - 1] = size_.outputs;
    if (auto status = allocate(api, context, 0, &out)) return status;
    const int64_t rows = x.rows(), blocks = size_.blocks();
    if (!rows) return nullptr;

    static thread_local Scratch scratch;
    if (!scratch.grow(rows, size_, gate_.changes(), bits_)) return api.error(ort::kFail, "QuantizedLinear: out of memory");
    const Activations activations{scratch.values.data(), scratch.scales.data(), scratch.starts.data()};
    float* changed = scratch.changed.data();
#if POCKETVLM_TILES
    const bool has_tiles = suits_tiles(size_, bits_, rows);
    const TileRows tiled{activations.values, size_.inputs};
#endif
    const auto prepare = [&](int64_t row) {
      const float* from = x.as<float>() + row * x.last() + x_offset_;
      if (gate_.changes()) {
        float* to = changed + row * size_.inputs;
        gate_.apply(from, gate.as<float>() + row * gate.last() + gate_offset_, norm.as<float>(), size_.inputs, to);
        from = to;
      }
      float* scales_of = activations.scales + row * blocks;
      int32_t* starts_of = activations.starts + row * blocks;
#if POCKETVLM_TILES
      if (has_tiles) {
        quantize_row<8>(from, size_, [&](int64_t k) { return tiled.place(row, k); }, scales_of, starts_of);
        return tiled.end(row);
      }
#endif
      const auto place = [to = activations.values + row * size_.inputs](int64_t k) { return to + k; };
      bits_ == 8 ? quantize_row<8>(from, size_, place, scales_of, starts_of)
                 : quantize_row<4>(from, size_, place, scales_of, starts_of);
    };
    // Other threads take some microseconds to begin.
    constexpr int64_t kAlone = 8192;
    ort::Status status = nullptr;
    if (rows * size_.inputs <= kAlone)
      for (int64_t row = 0; row < rows; ++row) prepare(row);
    else if ((status = parallel_for(api, context, rows, prepare)))
      return status;
    const Weights weights{values.as<uint8_t>(), scales.as<float>()};
    const Finish finish{bias.as<float>(), has_gelu_};
#if POCKETVLM_TILES
    if (has_tiles) {
      const TileTasks tasks{size_, rows};
      return parallel_for(api, context, tasks.count(), [&](int64_t number) {
        multiply_task(size_, tasks, tiled, activations, weights, finish, out.as<float>(), rows, number);
      });
    }
#endif
    auto* run = bits_ == 8 ? panel<8> : panel<4>;
    return parallel_for(api, context, panels, [&](int64_t number) {
      run(size_, activations, weights, finish, out.as<float>(), rows, number);
    });
  }

 private:
  // What a call needs beside its inputs; kept by each thread that runs sessions.
  struct Scratch {
    Buffer<Stored> values;
    Buffer<float> scales, changed;
    Buffer<int32_t> starts;

    bool grow(int64_t rows, const Size& size, bool changes, int64_t bits) {
      int64_t count = rows * size.inputs;
#if POCKETVLM_TILES
      if (suits_tiles(size, bits, rows)) count = TileRows::bytes(rows, size.inputs);
#else
      static_cast<void>(bits);
#endif
      return values.grow(count) && scales.grow(rows * size.blocks()) && starts.grow(rows * size.blocks()) &&
             (!changes || changed.grow(rows * size.inputs));
    }
  };

  Size size_{};
  Gate gate_{};
  bool has_gelu_ = false;
  int64_t bits_ = 0, x_offset_ = 0, gate_offset_ = 0;
};

}  // namespace pocketvlm
