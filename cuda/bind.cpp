// fastrnn._cuda: the CUDA kernels on raw addresses, and what the CUDA runtime says about this machine.
// Links the runtime statically and nothing of the driver, so it imports where there is neither GPU nor driver;
// functions then answer with the reason instead of failing. Everything is checked in Python before it gets here.
#include <atomic>
#include <mutex>
#include <optional>
#include <tuple>

#include "../csrc/cells/all.h"
#include "bind.h"
#include "plan.h"

namespace py = pybind11;
using namespace fastrnn;

namespace {
cudaError_t count_devices(int& count) {
  count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  cudaGetLastError();  // the reason is returned; it must not surface again in somebody else's check
  if (status != cudaSuccess) count = 0;
  return status;
}

int device_count() {
  int count;
  count_devices(count);
  return count;
}

// "" when at least one device is usable, else why there is none.
std::string error() {
  int count;
  const cudaError_t status = count_devices(count);
  if (status != cudaSuccess) return describe(status);
  return count > 0 ? "" : describe(cudaErrorNoDevice);
}

py::dict describe_device(int device) {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  return py::dict(py::arg("name") = std::string(properties.name),
                  py::arg("capability") = py::make_tuple(properties.major, properties.minor),
                  py::arg("multiprocessors") = properties.multiProcessorCount,
                  py::arg("memory_bytes") = properties.totalGlobalMem,
                  py::arg("smem_bytes_per_block") = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
}

py::list devices() {
  py::list list;
  for (int device = 0; device < device_count(); ++device) list.append(describe_device(device));
  return list;
}

// 13000 for 13.0.
int runtime_version() {
  int version = 0;
  check(cudaRuntimeGetVersion(&version), "cudaRuntimeGetVersion");
  return version;
}

// The newest CUDA that the installed driver serves, 0 without a driver.
int driver_version() {
  int version = 0;
  check(cudaDriverGetVersion(&version), "cudaDriverGetVersion");
  return version;
}

// ---- kernels
#define FASTRNN_NAME(name, Cell) #name,
constexpr const char* kCellNames[] = {FASTRNN_FOR_EACH_CELL(FASTRNN_NAME)};
constexpr const char* kSpecialNames[] = {FASTRNN_FOR_EACH_REGULARISED_CELL(FASTRNN_NAME)};
constexpr const char* kNormNames[] = {FASTRNN_FOR_EACH_NORMALISED_CELL(FASTRNN_NAME)};
constexpr int kNumPointwise = std::size(kCellNames) - std::size(kNormNames);  // those come last
enum Kind { kPlain, kSpecial, kNorm };
const CudaKernels* const kTypeKernels[][kNumCudaTypes] = {
    {kKernelsFloat32, kKernelsFloat64, kKernelsBfloat16, kKernelsFloat16},
    {kSpecialFloat32, kSpecialFloat64, kSpecialBfloat16, kSpecialFloat16},
    {kNormFloat32, kNormFloat64, kNormBfloat16, kNormFloat16}};

const CudaKernels& kernels_of(const std::string& cell, const std::string& dtype, bool special = false) {
  const int found = index_of(kCellNames, cell, "cell"), type = index_of(kTypeNames, dtype, "dtype");
  if (found >= kNumPointwise) return kTypeKernels[kNorm][type][found - kNumPointwise];
  if (!special) return kTypeKernels[kPlain][type][found];
  return kTypeKernels[kSpecial][type][index_of(kSpecialNames, cell, "cell")];
}

Chip chip_of(int device) {
  const int major = capability_of(device);
  return {attribute(cudaDevAttrMultiProcessorCount, device), attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
          major >= 9 ? 16 : 1, attribute(cudaDevAttrCooperativeLaunch, device) != 0};
}

// A word in host memory that kernels set when a wait ran out of time: it can be read without synchronising. One for all
// devices: which call it was is not known any more when it is read.
uint32_t* error_word() {
  static uint32_t* word = [] {
    void* p = nullptr;
    check(cudaHostAlloc(&p, 64, cudaHostAllocPortable | cudaHostAllocMapped), "cudaHostAlloc");
    *static_cast<volatile uint32_t*>(p) = 0;
    return static_cast<uint32_t*>(p);
  }();
  return word;
}
std::atomic<uint64_t> wait_limit_ns{2'000'000'000};

void check_waits() {
  volatile uint32_t* word = error_word();
  if (!*word) return;
  *word = 0;
  throw std::runtime_error(
      "fastrnn: a CUDA kernel of an earlier call gave up waiting for its other thread blocks, and its results are "
      "wrong; expected all of them to run at the same time. Is the device shared with other work? "
      "Set FASTRNN_CUDA_SCHEDULE=stepwise to run without waits between thread blocks");
}

// On a device, clusters are also asked for: other work, or a slice of a chip, may leave no room for large ones.
CudaPlan plan(const std::string& cell, const std::string& dtype, int64_t B, int64_t H, int64_t D, bool backward,
              const std::string& schedule, int device, const std::optional<py::dict>& chip) {
  const CudaQuery query{&kernels_of(cell, dtype), B, H, D, backward, schedule};
  if (chip)
    return make_cuda_plan(query, {(*chip)["multiprocessors"].cast<int>(), (*chip)["shared_bytes"].cast<int>(),
                                  (*chip)["largest_cluster"].cast<int>(), (*chip)["cooperative"].cast<bool>()});
  const OnDevice guard(device);
  Chip own = chip_of(device);
  for (;;) {
    const CudaPlan plan = make_cuda_plan(query, own);
    if (plan.geometry.schedule != kCluster || query.kernels->active_clusters(plan.geometry, D, backward) > 0)
      return plan;
    own.largest_cluster = plan.geometry.ctas / 2;
  }
}

struct Layer {  // the arguments that forward and backward share
  std::string cell, dtype;
  int64_t T, B, H, D;
  Addresses weights, states_in;
  Address lengths, reset_mask;
  int64_t reset_t, reset_b;
  bool reset_to_initial;
  Address y;
  int64_t y_t, y_b;
  Address reserve, workspace;
  // seed, zoneout of h and c, training, h_mask, rate of candidate dropout, whether per step: Noise.for_core()
  std::tuple<uint64_t, double, double, bool, Address, double, bool> noise;
  bool recompute;

  void fill(CudaLayer& p, const CudaPlan& plan) const {
    p.T = T;
    p.B = B;
    p.H = H;
    p.D = D;
    for (int d = 0; d < 2; ++d) {
      p.w_hh[d] = at<void>(weights, 2 * d);
      p.b_hh[d] = at<void>(weights, 2 * d + 1);
      p.states_in[d] = at<void>(states_in, d);
    }
    p.lengths = at<const int64_t>(lengths);
    p.reset_mask = at<const uint8_t>(reset_mask);
    p.reset_stride_t = reset_t;
    p.reset_stride_b = reset_b;
    p.reset_to_initial = reset_to_initial;
    p.y = at<void>(y);
    p.y_stride_t = y_t;
    p.y_stride_b = y_b;
    p.reserve = at<void>(reserve);
    p.workspace = at<void>(workspace);
    const auto& [seed, of_h, of_c, training, h_mask, candidate, per_step] = noise;
    p.zoneout = {seed, {of_h, of_c}, training};
    p.candidate_dropout = {seed, candidate, per_step};
    p.h_mask = at<void>(h_mask);
    p.recompute = recompute;
    p.geometry = plan.geometry;
    p.wait_limit_ns = wait_limit_ns;
    void* error = nullptr;
    check(cudaHostGetDevicePointer(&error, error_word(), 0), "cudaHostGetDevicePointer");
    p.error = static_cast<uint32_t*>(error);
  }
};

void rnn_forward(const Layer& layer, const CudaPlan& plan, int device, Address stream, Address gx, int64_t gx_t,
                 int64_t gx_b, const Addresses& states_out, Address first_product) {
  const OnDevice guard(device);
  check_waits();
  CudaForward p{};
  layer.fill(p, plan);
  p.gx = at<void>(gx);
  p.gx_stride_t = gx_t;
  p.gx_stride_b = gx_b;
  for (int s = 0; s < 2; ++s) p.states_out[s] = at<void>(states_out, s);
  p.first_product = at<void>(first_product);
  const CudaKernels& kernels = kernels_of(layer.cell, layer.dtype, p.special());
  py::gil_scoped_release release;
  check(kernels.forward(p, at<CUstream_st>(stream)), "rnn_forward");
}

void rnn_backward(const Layer& layer, const CudaPlan& plan, int device, Address stream, Address dy, int64_t dy_t,
                  int64_t dy_b, const Addresses& dstates_out, Address dc, int64_t dc_t, int64_t dc_b,
                  Address detach_mask, int64_t detach_t, int64_t detach_b, double grad_clip, Address dgx, Address dgr,
                  Address dvectors, Address h_prev, const Addresses& dstates_in, Address dinitial, Address deviations) {
  const OnDevice guard(device);
  check_waits();
  CudaBackward p{};
  layer.fill(p, plan);
  p.dy = at<void>(dy);
  p.dy_stride_t = dy_t;
  p.dy_stride_b = dy_b;
  p.dc = at<void>(dc);
  p.dc_stride_t = dc_t;
  p.dc_stride_b = dc_b;
  p.detach_mask = at<const uint8_t>(detach_mask);
  p.detach_stride_t = detach_t;
  p.detach_stride_b = detach_b;
  p.grad_clip = grad_clip;
  p.dgx = at<void>(dgx);
  p.dgr = at<void>(dgr);
  p.dvectors = at<void>(dvectors);
  p.h_prev = at<void>(h_prev);
  p.dinitial = at<void>(dinitial);
  p.deviations = at<void>(deviations);
  for (int s = 0; s < 2; ++s) {
    p.dstates_out[s] = at<void>(dstates_out, s);
    p.dstates_in[s] = at<void>(dstates_in, s);
  }
  const CudaKernels& kernels = kernels_of(layer.cell, layer.dtype, p.special());
  py::gil_scoped_release release;
  check(kernels.backward(p, at<CUstream_st>(stream)), "rnn_backward");
}

std::string repr(const CudaPlan& plan) {
  const Geometry& g = plan.geometry;
  return std::string(cuda_schedule_name(g.schedule)) + ": " + std::to_string(g.groups) + " group(s) of " +
         std::to_string(g.rows) + " rows, " + std::to_string(g.ctas) + " CTA(s) of " + std::to_string(g.units) +
         " units each, " + std::to_string(plan.needs.shared_bytes) + " bytes of shared memory, " +
         std::to_string(plan.needs.workspace_bytes) + " of workspace";
}
}  // namespace

#if !defined(FASTRNN_CUDA_MODULE)
#define FASTRNN_CUDA_MODULE _cuda
#endif
void bind_emulation(py::module_& m);  // of the test-only module that runs the kernels on a CPU

PYBIND11_MODULE(FASTRNN_CUDA_MODULE, m, py::mod_gil_not_used()) {
  m.doc() = "fastrnn CUDA kernels on raw addresses; use fastrnn.nn or fastrnn.functional instead.";
  m.def("device_count", &device_count, "Number of usable CUDA devices; 0 without a driver.");
  m.def("devices", &devices, "Name, capability and sizes of every usable device.");
  m.def("error", &error, "Why no device is usable; '' if one is.");
  m.def("runtime_version", &runtime_version, "CUDA runtime inside this module, 1000 * major + 10 * minor.");
  m.def("driver_version", &driver_version, "Newest CUDA that the driver serves, as above; 0 = no driver.");

  py::dict cells;
  for (size_t i = 0; i < std::size(kCellNames); ++i) {
    const CudaKernels& kernels = kernels_of(kCellNames[i], kTypeNames[0]);
    cells[kCellNames[i]] =
        py::dict(py::arg("shared_gate_grad") = kernels.shared_gate_grad, py::arg("late_gates") = kernels.stages - 1,
                 py::arg("special") = i < std::size(kSpecialNames) || i >= kNumPointwise);
  }
  m.attr("CELLS") = cells;
#if defined(FASTRNN_CUDA_FAST_COMPILE)
  m.attr("OPTIMIZED") = false;
#else
  m.attr("OPTIMIZED") = true;
#endif
  py::class_<CudaPlan>(m, "Plan", py::module_local())
      .def_property_readonly("schedule", [](const CudaPlan& p) { return cuda_schedule_name(p.geometry.schedule); })
      .def_property_readonly("ctas", [](const CudaPlan& p) { return p.geometry.ctas; })
      .def_property_readonly("units", [](const CudaPlan& p) { return p.geometry.units; })
      .def_property_readonly("rows", [](const CudaPlan& p) { return p.geometry.rows; })
      .def_property_readonly("groups", [](const CudaPlan& p) { return p.geometry.groups; })
      .def_property_readonly("shared_bytes", [](const CudaPlan& p) { return p.needs.shared_bytes; })
      .def_property_readonly("workspace_bytes", [](const CudaPlan& p) { return p.needs.workspace_bytes; })
      .def_property_readonly("us_per_step", [](const CudaPlan& p) { return p.us_per_step; })
      .def("__repr__", &repr);
  m.def(
      "plan", &plan, py::arg("cell"), py::arg("dtype"), py::arg("B"), py::arg("H"), py::arg("D"), py::arg("backward"),
      py::arg("schedule") = "", py::arg("device") = 0, py::arg("chip") = py::none(),
      "How a layer would run, on a device or on a chip described by multiprocessors, shared_bytes, largest_cluster and "
      "cooperative.");
  py::class_<Layer>(m, "Layer", py::module_local())
      .def(py::init([](std::string cell, std::string dtype, int64_t T, int64_t B, int64_t H, int64_t D,
                       Addresses weights, Addresses states_in, Address lengths, Address reset_mask, int64_t reset_t,
                       int64_t reset_b, bool reset_to_initial, Address y, int64_t y_t, int64_t y_b, Address reserve,
                       Address workspace, std::tuple<uint64_t, double, double, bool, Address, double, bool> noise,
                       bool recompute) {
        return Layer{std::move(cell),
                     std::move(dtype),
                     T,
                     B,
                     H,
                     D,
                     std::move(weights),
                     std::move(states_in),
                     lengths,
                     reset_mask,
                     reset_t,
                     reset_b,
                     reset_to_initial,
                     y,
                     y_t,
                     y_b,
                     reserve,
                     workspace,
                     noise,
                     recompute};
      }));
  m.def("rnn_forward", &rnn_forward);
  m.def("rnn_backward", &rnn_backward);
  m.def("check_waits", &check_waits,
        "Raises if a kernel that has finished gave up waiting for its other thread blocks.");
  m.def(
      "set_wait_limit", [](double seconds) { wait_limit_ns = uint64_t(seconds * 1e9); }, py::arg("seconds"),
      "How long a kernel waits for its other thread blocks; 0 makes every wait fail, for tests.");
  bind_attention(m);
  bind_decoder(m);
#if defined(FASTRNN_CUDA_EMULATED)
  bind_emulation(m);
#endif
}
