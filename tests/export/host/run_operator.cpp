// Runs one of our operators without ONNX Runtime: for instruction sets that this processor has not, under an emulator.
//
// Input, on stdin: lines of "name NAME", "int NAME VALUE", "float NAME VALUE", and of "input TYPE RANK SIZE…" (TYPE 1 is
// fp32, 2 is uint8, 6 is int32, 0 a missing one), each of which is followed by its bytes. Output: for each output a line "output RANK
// SIZE…" and its fp32 values.
#include <cstdio>
#include <iostream>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "operators.cpp"

namespace ort {

struct Shape {
  std::vector<int64_t> sizes;
};

struct Value {
  Shape shape;
  std::vector<char> bytes;
  void* place = nullptr;  // aligned

  void allocate(size_t size) {
    bytes.resize(size + 64);
    place = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(bytes.data()) + 63) / 64 * 64);
  }
};

struct Info {
  std::map<std::string, int64_t> ints;
  std::map<std::string, float> floats;
};

struct Context {
  std::vector<std::unique_ptr<Value>> inputs, outputs;
};

}  // namespace ort

namespace {

using ort::Context, ort::Info, ort::Shape, ort::Status, ort::Value;

Status error(int, const char* text) { return const_cast<char*>(text); }

Status data(const Value* value, void** out) { return *out = value->place, nullptr; }

Status dimension_count(const Shape* shape, size_t* out) { return *out = shape->sizes.size(), nullptr; }

Status dimensions(const Shape* shape, int64_t* out, size_t count) {
  return std::copy_n(shape->sizes.begin(), count, out), nullptr;
}

Status shape_of(const Value* value, Shape** out) { return *out = new Shape(value->shape), nullptr; }

template <typename T>
Status attribute_of(const std::map<std::string, T>& known, const char* name, T* out) {
  const auto found = known.find(name);
  if (found == known.end()) return error(0, name);
  return *out = found->second, nullptr;
}

Status float_attribute(const Info* info, const char* name, float* out) { return attribute_of(info->floats, name, out); }

Status int_attribute(const Info* info, const char* name, int64_t* out) { return attribute_of(info->ints, name, out); }

Status input(const Context* context, size_t index, const Value** out) {
  return *out = index < context->inputs.size() ? context->inputs[index].get() : nullptr, nullptr;
}

Status output(Context* context, size_t index, const int64_t* shape, size_t count, Value** out) {
  if (context->outputs.size() <= index) context->outputs.resize(index + 1);
  context->outputs[index] = std::make_unique<Value>();
  *out = context->outputs[index].get();
  (*out)->shape.sizes.assign(shape, shape + count);
  size_t size = sizeof(float);
  for (size_t i = 0; i < count; ++i) size *= shape[i];
  (*out)->allocate(size);
  return nullptr;
}

void release(Shape* shape) { delete shape; }

Status parallel_for(const Context*, void (*work)(void*, size_t), size_t total, size_t, void* of) {
  for (size_t i = 0; i < total; ++i) work(of, i);
  return nullptr;
}

const ort::Operator* find(const std::string& name) {
  for (const ort::Operator* op : operators())
    if (name == op->name(op)) return op;
  return nullptr;
}

}  // namespace

int main() {
  ort::Api api{};
  api.places[0] = reinterpret_cast<void*>(error), api.places[51] = reinterpret_cast<void*>(data);
  api.places[61] = reinterpret_cast<void*>(dimension_count), api.places[62] = reinterpret_cast<void*>(dimensions);
  api.places[65] = reinterpret_cast<void*>(shape_of), api.places[85] = reinterpret_cast<void*>(float_attribute);
  api.places[86] = reinterpret_cast<void*>(int_attribute), api.places[90] = reinterpret_cast<void*>(input);
  api.places[91] = reinterpret_cast<void*>(output), api.places[99] = reinterpret_cast<void*>(release);
  api.places[274] = reinterpret_cast<void*>(parallel_for);

  Info info;
  Context context;
  std::string line, word, name;
  while (std::getline(std::cin, line)) {
    std::istringstream words(line);
    words >> word;
    if (word == "name") {
      words >> name;
    } else if (word == "int") {
      words >> word >> info.ints[word];
    } else if (word == "float") {
      words >> word >> info.floats[word];
    } else {
      int type, rank;
      words >> type >> rank;
      auto value = std::make_unique<Value>();
      value->shape.sizes.resize(rank);
      size_t size = type == ort::kUint8 ? 1 : 4;
      for (int64_t& one : value->shape.sizes) words >> one, size *= one;
      value->allocate(size);
      std::cin.read(static_cast<char*>(value->place), static_cast<std::streamsize>(size));
      context.inputs.push_back(type ? std::move(value) : nullptr);
    }
  }
  const ort::Operator* op = find(name);
  void* instance = nullptr;
  Status status = op ? op->create(op, &api, &info, &instance) : error(0, "no such operator");
  if (!status) status = op->compute(instance, &context);
  if (status) return std::cerr << static_cast<const char*>(status) << '\n', 1;
  for (const auto& value : context.outputs) {
    std::cout << "output " << value->shape.sizes.size();
    size_t size = sizeof(float);
    for (const int64_t one : value->shape.sizes) std::cout << ' ' << one, size *= one;
    std::cout << '\n';
    std::cout.write(static_cast<const char*>(value->place), static_cast<std::streamsize>(size));
  }
  op->destroy(instance);
}
