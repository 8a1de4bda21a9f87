// fastrnn._core: the CPU kernels on raw addresses. Everything is checked in Python (fastrnn/_checks.py) before it gets
// here.
#include "bind.h"

#include <pybind11/numpy.h>

#include <array>
#include <chrono>
#include <cstring>
#include <optional>
#include <thread>

#include "cpu/engine.h"
#include "dlpack.h"

using namespace fastrnn;

namespace {
CellId cell_id(const std::string& name) {
  for (int i = 0; i < kNumCells; ++i)
    if (name == kCells[i].name) return CellId(i);
  std::string names;
  for (const CellInfo& cell : kCells) names += std::string(names.empty() ? "" : ", ") + cell.name;
  throw std::invalid_argument("fastrnn: cell is '" + name + "', expected one of: " + names);
}

template <class T>
RnnWeights<T> weights_of(const Addresses& list, size_t first) {
  return {at<const T>(list, first), at<const T>(list, first + 1), at<const T>(list, first + 2),
          at<const T>(list, first + 3), at<const T>(list, first + 4)};
}

// seed, rate of h, rate of c, training, address of h_mask, rate of the candidate, whether per step; see csrc/noise.h.
using Noise = std::tuple<uint64_t, double, double, bool, Address, double, bool>;
// segment_steps, grad_clip, detach_mask and its strides; see csrc/params.h.
using Backprop = std::tuple<int64_t, double, Address, int64_t, int64_t>;

Zoneout zoneout_of(const Noise& n) { return {std::get<0>(n), {std::get<1>(n), std::get<2>(n)}, std::get<3>(n)}; }

template <class T>
void fill_input(RnnInput<T>& p, const RnnShape& shape, Address x, int64_t x_stride_t, int64_t x_stride_b,
                const Addresses& weights, const Addresses& states_in, Address lengths, Address reset_mask,
                int64_t reset_stride_t, int64_t reset_stride_b, const std::optional<Noise>& noise,
                const std::optional<Backprop>& backprop, bool reset_to_initial, Address checkpoints) {
  if (noise) {
    p.zoneout = zoneout_of(*noise);
    p.candidate_dropout = {std::get<0>(*noise), std::get<5>(*noise), std::get<6>(*noise)};
    p.h_mask = at<const T>(std::get<4>(*noise));
  }
  if (backprop && std::get<0>(*backprop)) {
    p.segment_steps = std::get<0>(*backprop);
    p.checkpoints = at<T>(checkpoints);
  }
  p.shape = shape;
  p.x = at<const T>(x);
  p.x_stride_t = x_stride_t;
  p.x_stride_b = x_stride_b;
  for (int d = 0; d < shape.D; ++d) p.weights[d] = weights_of<T>(weights, 5 * d);
  for (int s = 0; s < kStateArrays; ++s) p.states_in[s] = at<const T>(states_in, s);
  p.lengths = at<const int64_t>(lengths);
  p.reset_mask = at<const uint8_t>(reset_mask);
  p.reset_stride_t = reset_stride_t;
  p.reset_stride_b = reset_stride_b;
  p.reset_to_initial = reset_to_initial;
}

void rnn_forward(const std::string& cell, int itemsize, int64_t T, int64_t B, int64_t I, int64_t H, int64_t P,
                 int64_t D, Address x, int64_t x_stride_t, int64_t x_stride_b, const Addresses& weights,
                 const Addresses& states_in, Address lengths, Address reset_mask, int64_t reset_stride_t,
                 int64_t reset_stride_b, Address y, int64_t y_stride_t, int64_t y_stride_b, const Addresses& states_out,
                 Address reserve, const std::string& schedule, int threads, const std::optional<Noise>& noise,
                 const std::optional<Backprop>& backprop, bool reset_to_initial) {
  const CellId id = cell_id(cell);
  const auto call = [&](auto zero) {
    using E = decltype(zero);
    RnnForward<E> p{};
    fill_input(p, {T, B, I, H, P, D}, x, x_stride_t, x_stride_b, weights, states_in, lengths, reset_mask,
               reset_stride_t, reset_stride_b, noise, backprop, reset_to_initial, reserve);
    p.y = at<E>(y);
    p.y_stride_t = y_stride_t;
    p.y_stride_b = y_stride_b;
    for (int s = 0; s < kStateArrays; ++s) p.states_out[s] = at<E>(states_out, s);
    p.reserve = p.segment_steps ? nullptr : at<E>(reserve);
    run_interruptible(schedule, threads, [&](const RunOptions& options) { run_forward<E>(id, p, options); });
  };
  itemsize == 4 ? call(0.0f) : call(0.0);
}

void rnn_backward(const std::string& cell, int itemsize, int64_t T, int64_t B, int64_t I, int64_t H, int64_t P,
                  int64_t D, Address x, int64_t x_stride_t, int64_t x_stride_b, const Addresses& weights,
                  const Addresses& states_in, Address lengths, Address reset_mask, int64_t reset_stride_t,
                  int64_t reset_stride_b, Address y, int64_t y_stride_t, int64_t y_stride_b, Address reserve,
                  Address dy, int64_t dy_stride_t, int64_t dy_stride_b, const Addresses& dstates_out, Address dc,
                  int64_t dc_stride_t, int64_t dc_stride_b, Address dx, int64_t dx_stride_t, int64_t dx_stride_b,
                  const Addresses& dstates_in, const Addresses& dweights, const std::string& schedule, int threads,
                  const std::optional<Noise>& noise, const std::optional<Backprop>& backprop, bool reset_to_initial) {
  const CellId id = cell_id(cell);
  const auto call = [&](auto zero) {
    using E = decltype(zero);
    RnnBackward<E> p{};
    fill_input(p, {T, B, I, H, P, D}, x, x_stride_t, x_stride_b, weights, states_in, lengths, reset_mask,
               reset_stride_t, reset_stride_b, noise, backprop, reset_to_initial, reserve);
    p.y = at<const E>(y);
    p.y_stride_t = y_stride_t;
    p.y_stride_b = y_stride_b;
    p.reserve = p.segment_steps ? nullptr : at<const E>(reserve);
    p.dy = at<const E>(dy);
    p.dy_stride_t = dy_stride_t;
    p.dy_stride_b = dy_stride_b;
    p.dc = at<const E>(dc);
    p.dc_stride_t = dc_stride_t;
    p.dc_stride_b = dc_stride_b;
    if (backprop) {
      p.grad_clip = E(std::get<1>(*backprop));
      p.detach_mask = at<const uint8_t>(std::get<2>(*backprop));
      p.detach_stride_t = std::get<3>(*backprop);
      p.detach_stride_b = std::get<4>(*backprop);
    }
    p.dx = at<E>(dx);
    p.dx_stride_t = dx_stride_t;
    p.dx_stride_b = dx_stride_b;
    for (int s = 0; s < kStateArrays; ++s) {
      p.dstates_out[s] = at<const E>(dstates_out, s);
      p.dstates_in[s] = at<E>(dstates_in, s);
    }
    for (int d = 0; d < D; ++d)
      p.grads[d] = {at<E>(dweights, 5 * d), at<E>(dweights, 5 * d + 1), at<E>(dweights, 5 * d + 2),
                    at<E>(dweights, 5 * d + 3), at<E>(dweights, 5 * d + 4)};
    run_interruptible(schedule, threads, [&](const RunOptions& options) { run_backward<E>(id, p, options); });
  };
  itemsize == 4 ? call(0.0f) : call(0.0);
}

// Uninitialised memory for large results and for what forward keeps; it returns to the engine when the last user lets
// go.
py::array kept_array(const std::vector<py::ssize_t>& shape, int itemsize) {
  int64_t bytes = itemsize;
  for (const py::ssize_t n : shape) bytes *= n;
  auto buffer = std::make_unique<Buffer>(take_buffer(bytes));
  const py::capsule owner(buffer.get(),
                          [](void* p) { give_back(std::move(*std::unique_ptr<Buffer>(static_cast<Buffer*>(p)))); });
  const Buffer* data = buffer.release();
  const py::dtype dtype = itemsize == 4 ? py::dtype::of<float>() : py::dtype::of<double>();
  return py::array(dtype, shape, data->data(), owner);
}

py::dict plan(const std::string& cell, int itemsize, int64_t T, int64_t B, int64_t I, int64_t H, int64_t P, int64_t D,
              bool training, int threads, const std::string& schedule) {
  const Plan plan =
      make_plan({kCells[cell_id(cell)], itemsize, {T, B, I, H, P, D}, training, threads, schedule.c_str()});
  return py::dict(py::arg("schedule") = schedule_name(plan.schedule), py::arg("threads") = plan.threads,
                  py::arg("chunk_steps") = plan.chunk_steps);
}

// The factors [rows, units] of dropout with probability `rate`: row r has the random numbers of time r, batch row 0.
void dropout_mask(int itemsize, uint64_t seed, int64_t stream, int64_t rows, int64_t units, double rate, Address out) {
  py::gil_scoped_release release;
  const CpuTable& table = cpu_table();
  const double scale = rate < 1 ? 1 / (1 - rate) : 0;
  for (int64_t r = 0; r < rows; ++r) {
    const uint64_t key = noise_key(seed, stream, r, 0);
    if (itemsize == 4)
      table.dropout_row_f32(key, units, noise_threshold(rate), float(scale), at<float>(out) + r * units);
    else
      table.dropout_row_f64(key, units, noise_threshold(rate), scale, at<double>(out) + r * units);
  }
}

// float32 or float64 stepper behind one Python type.
class AnyStepper {
 public:
  AnyStepper(const std::string& cell, int itemsize, int64_t B,
             const std::vector<std::tuple<int64_t, int64_t, int64_t>>& sizes, const Addresses& weights,
             const std::array<double, 2>& zoneout) {
    B_ = B;
    I_ = std::get<0>(sizes.at(0));
    std::vector<LayerSize> layers;
    for (const auto& s : sizes) layers.push_back({std::get<0>(s), std::get<1>(s), std::get<2>(s)});
    const auto build = [&](auto zero) {
      using E = decltype(zero);
      std::vector<RnnWeights<E>> list;
      for (size_t l = 0; l < layers.size(); ++l) list.push_back(weights_of<E>(weights, 5 * l));
      return std::make_unique<Stepper<E>>(cell_id(cell), B, layers, list, Zoneout{0, {zoneout[0], zoneout[1]}, false});
    };
    if (itemsize == 4)
      f32_ = build(0.0f);
    else
      f64_ = build(0.0);
  }
  void step(Address x, Address y) {
    f32_ ? f32_->step(at<float>(x), at<float>(y)) : f64_->step(at<double>(x), at<double>(y));
  }
  // A function of x that does a step, y going to where it is told here: of tensors, read through the capsule `exchange`
  // of DlExchange, or of arrays. A plain C function: a step of LSTM(64, 64) takes 1.8 us, getting here through pybind11
  // 60 ns.
  static py::object bind(const py::object& self, Address y, const py::object& exchange) {
    static PyMethodDef array = {"step_array", [](PyObject* owner, PyObject* x) { return of(owner).step_array(x); },
                                METH_O, nullptr};
    static PyMethodDef tensor = {"step_tensor", [](PyObject* owner, PyObject* x) { return of(owner).step_tensor(x); },
                                 METH_O, nullptr};
    auto& stepper = self.cast<AnyStepper&>();
    stepper.y_ = y;
    stepper.exchange_ = exchange;
    stepper.api_ = exchange.is_none() ? nullptr : py::capsule(exchange).get_pointer<const DlExchange>();
    py::capsule owner(&stepper, kOwner);
    PyCapsule_SetContext(owner.ptr(), py::object(self).release().ptr());  // which lives as long as the function
    PyCapsule_SetDestructor(
        owner.ptr(), [](PyObject* capsule) { Py_DECREF(static_cast<PyObject*>(PyCapsule_GetContext(capsule))); });
    return py::reinterpret_steal<py::object>(PyCFunction_New(stepper.api_ ? &tensor : &array, owner.ptr()));
  }
  void get_states(const Addresses& into) const {
    for (size_t s = 0; s < into.size(); ++s)
      if (into[s]) f32_ ? f32_->get_states(int(s), at<float>(into[s])) : f64_->get_states(int(s), at<double>(into[s]));
  }
  void set_states(const Addresses& from) {
    for (size_t s = 0; s < from.size(); ++s)
      if (from[s]) f32_ ? f32_->set_states(int(s), at<float>(from[s])) : f64_->set_states(int(s), at<double>(from[s]));
  }
  void reset(Address mask) { f32_ ? f32_->reset(at<uint8_t>(mask)) : f64_->reset(at<uint8_t>(mask)); }

 private:
  static constexpr const char* kOwner = "fastrnn stepper";
  static AnyStepper& of(PyObject* owner) { return *static_cast<AnyStepper*>(PyCapsule_GetPointer(owner, kOwner)); }

  // False, and nothing done, unless x is a C-contiguous, aligned array [B, I] of the stepper's own dtype. Here, because
  // NumPy needs 1.5 us to tell Python an address.
  PyObject* step_array(PyObject* array) {
    if (!py::isinstance<py::array>(array)) Py_RETURN_FALSE;
    const auto x = py::reinterpret_borrow<py::array>(array);
    if (x.ndim() != 2 || x.shape(0) != B_ || x.shape(1) != I_) Py_RETURN_FALSE;
    if (!(x.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_)) Py_RETURN_FALSE;
    if (f32_ ? !py::array_t<float, py::array::c_style>::check_(x) : !py::array_t<double, py::array::c_style>::check_(x))
      Py_RETURN_FALSE;
    step(reinterpret_cast<Address>(x.data()), y_);
    Py_RETURN_TRUE;
  }
  // The same for a torch tensor; DLPack does not tell whether its elements are to be negated.
  PyObject* step_tensor(PyObject* x) {
    static PyObject* const is_neg = PyUnicode_InternFromString("is_neg");
    PyObject* negated = PyObject_CallMethodNoArgs(x, is_neg);
    Py_XDECREF(negated);  // True or False, which stay
    DlTensor t;
    if (!negated || api_->view_object(x, &t) != 0) {
      PyErr_Clear();
      Py_RETURN_FALSE;
    }
    const bool plain = negated == Py_False && t.device_type == 1 && t.code == 2 && t.bits == (f32_ ? 32 : 64) &&
                       t.lanes == 1 && t.ndim == 2 && t.shape[0] == B_ && t.shape[1] == I_ &&
                       (t.strides[1] == 1 || I_ == 1) && (t.strides[0] == I_ || B_ == 1) && t.data;
    const Address address = reinterpret_cast<Address>(t.data) + t.byte_offset;
    if (!plain || address % (t.bits / 8)) Py_RETURN_FALSE;
    step(address, y_);
    Py_RETURN_TRUE;
  }

  int64_t B_, I_;
  Address y_ = 0;
  py::object exchange_;
  const DlExchange* api_ = nullptr;
  std::unique_ptr<Stepper<float>> f32_;
  std::unique_ptr<Stepper<double>> f64_;
};

// The best of a few short runs on every thread of a team; `work` does `units` of work and is timed as a whole.
template <class Work>
double best_rate(int threads, double units, Work work) {
  using Clock = std::chrono::steady_clock;
  double best = 0;
  for (int repeat = 0; repeat < 7; ++repeat) {
    std::vector<std::thread> others;
    const auto start = Clock::now();
    for (int i = 1; i < threads; ++i) others.emplace_back(work, i);
    work(0);
    for (std::thread& t : others) t.join();
    best = std::max(best, threads * units / std::chrono::duration<double>(Clock::now() - start).count());
  }
  return best;
}

double measure_fma(int threads) {
  py::gil_scoped_release release;
  constexpr int64_t kIterations = 4000000;
  const double flops = cpu_table().fma_loop(1) * kIterations;
  return best_rate(threads, flops, [](int) { cpu_table().fma_loop(kIterations); }) / 1e9;
}

double measure_read(int64_t bytes, int threads) {
  py::gil_scoped_release release;
  std::vector<Buffer> buffers;
  for (int i = 0; i < threads; ++i) {
    buffers.emplace_back(bytes);
    std::memset(buffers.back().data(), 1, size_t(bytes));
  }
  const int64_t repeats = std::max<int64_t>(1, (int64_t(1) << 30) / bytes);
  return best_rate(threads, double(bytes) * double(repeats),
                   [&](int i) {
                     cpu_table().read_loop(reinterpret_cast<const float*>(buffers[i].data()), bytes / 4, repeats);
                   }) /
         1e9;
}

double measure_barrier(int threads) {
  py::gil_scoped_release release;
  using Clock = std::chrono::steady_clock;
  constexpr int kBarriers = 20000;
  double best = 1e9;
  for (int repeat = 0; repeat < 7; ++repeat) {
    const auto start = Clock::now();
    const bool ran = run_team(
        threads,
        [](void*, const Team& team) {
          for (int i = 0; i < kBarriers; ++i) team.sync();
        },
        nullptr, Team());
    if (ran) best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count());
  }
  return best / kBarriers * 1e6;
}
}  // namespace

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
  m.doc() = "fastrnn CPU kernels on raw addresses; use fastrnn.nn, fastrnn.functional or fastrnn.numpy instead.";
  py::dict cells;
  for (const CellInfo& cell : kCells)
    cells[cell.name] =
        py::dict(py::arg("gates") = cell.gates, py::arg("states") = cell.states,
                 py::arg("reserve") = reserve_slots(cell.saved, cell.states, 0), py::arg("vectors") = cell.vectors,
                 py::arg("product") = cell.product, py::arg("drops_candidate") = cell.drops_candidate);
  m.attr("CELLS") = cells;
  m.def("isas", &isas, "The instruction sets that this CPU runs, best first.");
  m.def("isa", [] { return cpu_table().isa; }, "The instruction set in use.");
  m.def("set_isa", &set_isa, py::arg("isa"), "Use this instruction set; '' is the best.");
  m.def("num_threads", &num_threads);
  m.def("default_num_threads", &default_num_threads);
  m.def("set_num_threads", &set_num_threads, py::arg("n"));
  m.def("rnn_forward", &rnn_forward);
  m.def("rnn_backward", &rnn_backward);
  m.def("dropout_mask", &dropout_mask);
  m.def("kept_array", &kept_array, py::arg("shape"), py::arg("itemsize"));
  m.def("plan", &plan, py::arg("cell"), py::arg("itemsize"), py::arg("T"), py::arg("B"), py::arg("I"), py::arg("H"),
        py::arg("P"), py::arg("D"), py::arg("training"), py::arg("threads"), py::arg("schedule") = "");
  m.def("measure_fma", &measure_fma, py::arg("threads"), "Multiply-add rate of all threads together, GFLOP/s.");
  m.def("measure_read", &measure_read, py::arg("bytes"), py::arg("threads"),
        "Sustained read rate of all threads together, each over its own buffer of `bytes`, GB/s.");
  m.def("measure_barrier", &measure_barrier, py::arg("threads"),
        "Time in which all threads of a team wait for each other once, microseconds.");
  m.def(
      "activation",
      [](const std::string& name, int64_t n, Address x, Address y) {
        py::gil_scoped_release release;
        cpu_table().activation(name.c_str(), n, at<const float>(x), at<float>(y));
      },
      py::arg("name"), py::arg("n"), py::arg("x"), py::arg("y"),
      "exp, tanh, sigmoid or log1p (of 0 to 1) of float32 as the kernels compute it.");
  bind_attention(m);
  bind_decoder(m);
  py::class_<AnyStepper>(m, "Stepper")
      .def(py::init<const std::string&, int, int64_t, const std::vector<std::tuple<int64_t, int64_t, int64_t>>&,
                    const Addresses&, const std::array<double, 2>&>())
      .def("step", &AnyStepper::step)
      .def("bind", &AnyStepper::bind)
      .def("get_states", &AnyStepper::get_states)
      .def("set_states", &AnyStepper::set_states)
      .def("reset", &AnyStepper::reset);
}
