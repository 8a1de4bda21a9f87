#pragma once
// What the files that make up fastrnn._core share.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <vector>

namespace py = pybind11;

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

void bind_attention(py::module_& m);
void bind_decoder(py::module_& m);
