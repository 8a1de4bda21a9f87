#pragma once
// The part of DLPack 1.x that lets a tensor of another library be read without a Python call for each property: the
// layout of its structs is a stable ABI (dmlc.github.io/dlpack). torch offers it from 2.10 on, as the capsule
// torch.Tensor.__dlpack_c_exchange_api__.
#include <stdint.h>

namespace fastrnn {
struct DlTensor {
  void* data;
  int32_t device_type, device_id;  // device_type 1: CPU
  int32_t ndim;
  uint8_t code, bits;  // code 2: floating point
  uint16_t lanes;
  const int64_t *shape, *strides;
  uint64_t byte_offset;
};
struct DlExchange {
  uint32_t major, minor;
  void* previous;
  void *allocate, *from_object, *to_object;
  int (*view_object)(void* object, DlTensor* out);  // borrows; -1 with a Python error set
  void* stream;
};
constexpr const char* kDlExchangeName = "dlpack_exchange_api";
}  // namespace fastrnn
