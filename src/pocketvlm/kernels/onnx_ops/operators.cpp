// The library that ONNX Runtime loads: each class of the headers as an operator of the domain "pocketvlm".

#include "causal_attention.h"
#include "causal_conv.h"
#include "ceiling.h"
#include "delta_rule.h"
#include "quantized_linear.h"
#include "view_attention.h"

namespace {

template <typename Kernel>
struct Instance {
  const ort::Api* api;
  Kernel kernel;
};

template <typename Kernel>
const ort::Operator* operator_of() {
  static const ort::Operator made = [] {
    ort::Operator op;
    op.name = [](const ort::Operator*) { return Kernel::kName; };
    op.input_type = [](const ort::Operator*, size_t index) { return Kernel::input_type(index); };
    op.input_count = [](const ort::Operator*) { return Kernel::kInputs; };
    op.output_count = [](const ort::Operator*) { return Kernel::kOutputs; };
    op.input_kind = [](const ort::Operator*, size_t index) { return index < Kernel::kRequired ? 0 : 1; };
    op.create = [](const ort::Operator*, const ort::Api* api, const ort::Info* info, void** out) -> ort::Status {
      auto* instance = new (std::nothrow) Instance<Kernel>{api, {}};
      if (!instance) return api->error(ort::kFail, "out of memory");
      if (auto status = instance->kernel.read(*api, info)) {
        delete instance;
        return status;
      }
      *out = instance;
      return nullptr;
    };
    op.compute = [](void* object, ort::Context* context) {
      const auto* instance = static_cast<Instance<Kernel>*>(object);
      return instance->kernel.compute(*instance->api, context);
    };
    op.destroy = [](void* object) { delete static_cast<Instance<Kernel>*>(object); };
    return op;
  }();
  return &made;
}

const auto& operators() {
  static const auto made = {operator_of<pocketvlm::QuantizedLinear>(), operator_of<pocketvlm::CausalConv>(),
                            operator_of<pocketvlm::DeltaRule>(), operator_of<pocketvlm::ViewAttention>(),
                            operator_of<pocketvlm::CausalAttention>()};
  return made;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) ort::Status RegisterCustomOps(ort::Options* options,
                                                                                const ort::ApiBase* base) {
  const ort::Api* api = base->get(ort::kVersion);
  if (api == nullptr) return nullptr;  // an older release: the session then names the operator that it misses
  ort::Domain* domain = nullptr;  // lives as long as the process, as its operators do
  if (auto status = api->create_domain("pocketvlm", &domain)) return status;
  for (const ort::Operator* op : operators())
    if (auto status = api->add_operator(domain, op)) return status;
  return api->add_domain(options, domain);
}

// For ceiling.py: operations of so many turns, done on the thread that calls.
extern "C" __attribute__((visibility("default"))) int64_t pocketvlm_operations(int64_t turns) {
  return pocketvlm::ceiling::operations(turns);
}
