#pragma once
// Addresses as Python hands them over: integers, 0 for what is absent.
#include <cstddef>
#include <cstdint>
#include <vector>

namespace fastrnn {
using Address = std::uintptr_t;
using Addresses = std::vector<Address>;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}
template <class T>
T* at(const Addresses& list, size_t i) {
  return i < list.size() ? at<T>(list[i]) : nullptr;
}
}  // namespace fastrnn
