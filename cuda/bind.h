#pragma once
// What the files of the binding share.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>

#include "../csrc/address.h"

namespace fastrnn {
constexpr const char* kTypeNames[] = {"float32", "float64", "bfloat16", "float16"};  // in the order of CudaType

inline std::string describe(cudaError_t status) {
  return std::string(cudaGetErrorName(status)) + ": " + cudaGetErrorString(status);
}
inline void check(cudaError_t status, const char* call) {
  if (status != cudaSuccess) throw std::runtime_error(std::string("fastrnn._cuda: ") + call + ": " + describe(status));
}

inline int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
  return value;
}
// The major compute capability; raises where it is too low for the kernels.
inline int capability_of(int device) {
  const int major = attribute(cudaDevAttrComputeCapabilityMajor, device);
  if (major < 8)
    throw std::runtime_error("fastrnn: cuda:" + std::to_string(device) + " has compute capability " +
                             std::to_string(major) + ".x, expected 8.0 (Ampere) or newer; move the module to cpu");
  return major;
}

template <size_t N>
int index_of(const char* const (&names)[N], const std::string& name, const char* what) {
  std::string all;
  for (size_t i = 0; i < N; ++i) {
    if (name == names[i]) return int(i);
    all += std::string(all.empty() ? "" : ", ") + names[i];
  }
  throw std::invalid_argument(std::string("fastrnn._cuda: ") + what + " is '" + name + "', expected one of: " + all);
}

class OnDevice {
 public:
  explicit OnDevice(int device) : device_(device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    if (device_ != before_) check(cudaSetDevice(device_), "cudaSetDevice");
  }
  ~OnDevice() {
    if (device_ != before_) cudaSetDevice(before_);
  }

 private:
  int device_, before_ = 0;
};
}  // namespace fastrnn

void bind_attention(pybind11::module_& m);
void bind_decoder(pybind11::module_& m);
