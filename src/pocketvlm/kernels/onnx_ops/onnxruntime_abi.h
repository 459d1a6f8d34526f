// What an operator library needs of ONNX Runtime's C interface, whose headers its Python package does not bring.
//
// That interface is a table of functions which only ever grows at its end, so a place in it never changes its meaning
// (onnxruntime_c_api.h, version 17 and later; version 1 ends at place 101). Every function that can fail returns null
// or a status.
//
// Why the official header is not here: it is 8,000 lines of which 16 functions and one struct are used, its C++ wrapper
// needs exceptions and 3,000 lines more, and a copy would tie the sources to one release while this table holds for
// every release from 1.17 on (an older one has no table of that version to give). Every operator
// is compared with its standard twin in tests/export/test_compiled_*.py.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ort {

constexpr uint32_t kVersion = 17;  // the first with ParallelFor
constexpr int kFloat = 1, kUint8 = 2, kInt32 = 6;
constexpr int kFail = 1, kInvalidArgument = 2;  // error codes

using Status = void*;
struct Context;
struct Info;
struct Value;
struct Shape;
struct Domain;
struct Options;

struct Api {
  void* places[512];

  template <typename Function>
  Function at(int place) const {
    return reinterpret_cast<Function>(places[place]);
  }
  Status error(int code, const char* text) const { return at<Status (*)(int, const char*)>(0)(code, text); }
  Status create_domain(const char* name, Domain** out) const {
    return at<Status (*)(const char*, Domain**)>(26)(name, out);
  }
  Status add_operator(Domain* domain, const void* op) const {
    return at<Status (*)(Domain*, const void*)>(27)(domain, op);
  }
  Status add_domain(Options* options, Domain* domain) const {
    return at<Status (*)(Options*, Domain*)>(28)(options, domain);
  }
  Status data(const Value* value, void** out) const {
    return at<Status (*)(const Value*, void**)>(51)(value, out);
  }
  Status dimension_count(const Shape* shape, size_t* out) const {
    return at<Status (*)(const Shape*, size_t*)>(61)(shape, out);
  }
  Status dimensions(const Shape* shape, int64_t* out, size_t count) const {
    return at<Status (*)(const Shape*, int64_t*, size_t)>(62)(shape, out, count);
  }
  Status shape_of(const Value* value, Shape** out) const {
    return at<Status (*)(const Value*, Shape**)>(65)(value, out);
  }
  Status attribute(const Info* info, const char* name, float* out) const {
    return at<Status (*)(const Info*, const char*, float*)>(85)(info, name, out);
  }
  Status attribute(const Info* info, const char* name, int64_t* out) const {
    return at<Status (*)(const Info*, const char*, int64_t*)>(86)(info, name, out);
  }
  Status input(const Context* context, size_t index, const Value** out) const {
    return at<Status (*)(const Context*, size_t, const Value**)>(90)(context, index, out);
  }
  Status output(Context* context, size_t index, const int64_t* shape, size_t count, Value** out) const {
    return at<Status (*)(Context*, size_t, const int64_t*, size_t, Value**)>(91)(context, index, shape, count, out);
  }
  void release(Shape* shape) const { at<void (*)(Shape*)>(99)(shape); }
  // `work(data, i)` for every i below `total`, on the session's threads.
  Status parallel_for(const Context* context, void (*work)(void*, size_t), size_t total, void* data) const {
    using Function = Status (*)(const Context*, void (*)(void*, size_t), size_t, size_t, void*);
    return at<Function>(274)(context, work, total, 0, data);
  }
};

struct ApiBase {
  const Api* (*get)(uint32_t version);
  const char* (*version)();
};

// OrtCustomOp: all its places, in their order.
struct Operator {
  uint32_t version = kVersion;
  void* (*create_old)(const Operator*, const Api*, const Info*) = nullptr;
  const char* (*name)(const Operator*) = nullptr;
  const char* (*provider)(const Operator*) = [](const Operator*) -> const char* { return nullptr; };
  int (*input_type)(const Operator*, size_t) = nullptr;
  size_t (*input_count)(const Operator*) = nullptr;
  int (*output_type)(const Operator*, size_t) = [](const Operator*, size_t) { return kFloat; };
  size_t (*output_count)(const Operator*) = [](const Operator*) -> size_t { return 1; };
  void (*compute_old)(void*, Context*) = nullptr;
  void (*destroy)(void*) = nullptr;
  int (*input_kind)(const Operator*, size_t) = [](const Operator*, size_t) { return 0; };   // required
  int (*output_kind)(const Operator*, size_t) = [](const Operator*, size_t) { return 0; };
  int (*memory_type)(const Operator*, size_t) = [](const Operator*, size_t) { return 0; };  // where it runs
  int (*input_min_arity)(const Operator*) = [](const Operator*) { return 1; };
  int (*inputs_alike)(const Operator*) = [](const Operator*) { return 0; };
  int (*output_min_arity)(const Operator*) = [](const Operator*) { return 1; };
  int (*outputs_alike)(const Operator*) = [](const Operator*) { return 0; };
  Status (*create)(const Operator*, const Api*, const Info*, void**) = nullptr;
  Status (*compute)(void*, Context*) = nullptr;
  void* infer_shape = nullptr;
  int (*first_version)(const Operator*) = [](const Operator*) { return 1; };
  int (*last_version)(const Operator*) = [](const Operator*) { return 1; };
  // Of later versions; never called for this one.
  void* may_inplace = nullptr;
  void* release_inplace = nullptr;
  void* alias = nullptr;
  void* release_alias = nullptr;
};

}  // namespace ort
