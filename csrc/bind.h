#pragma once
// What the files that make up fastrnn._core share.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <string>

#include "address.h"
#include "cpu/engine.h"

namespace py = pybind11;

// Lets Ctrl-C through in long calls: between steps, at most every 50 ms, the calling thread asks Python.
struct Interrupt {
  int stop = 0;
  std::chrono::steady_clock::time_point last = std::chrono::steady_clock::now();

  static void poll(void* self) {
    Interrupt& me = *static_cast<Interrupt*>(self);
    const auto now = std::chrono::steady_clock::now();
    if (now - me.last < std::chrono::milliseconds(50)) return;
    me.last = now;
    py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) __atomic_store_n(&me.stop, 1, __ATOMIC_RELEASE);
  }
};

// run(options) without the GIL.
template <class Run>
void run_interruptible(const std::string& schedule, int threads, Run run) {
  Interrupt interrupt;
  {
    py::gil_scoped_release release;
    run(fastrnn::RunOptions{schedule.c_str(), threads, &interrupt.stop, &Interrupt::poll, &interrupt});
  }
  if (interrupt.stop) throw py::error_already_set();
}

void bind_attention(py::module_& m);
void bind_decoder(py::module_& m);
