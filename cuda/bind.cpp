// fastrnn._cuda: what the CUDA runtime says about this machine.
// Links the runtime statically and nothing of the driver, so it imports where there is neither GPU nor driver; every
// function then answers with the reason instead of failing. No call creates a context on a device.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

namespace py = pybind11;

namespace {
std::string describe(cudaError_t status) {
  return std::string(cudaGetErrorName(status)) + ": " + cudaGetErrorString(status);
}

void check(cudaError_t status, const char* call) {
  if (status != cudaSuccess) throw std::runtime_error(std::string("fastrnn._cuda: ") + call + ": " + describe(status));
}

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

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
  return value;
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
}  // namespace

PYBIND11_MODULE(_cuda, m, py::mod_gil_not_used()) {
  m.doc() = "What the CUDA runtime reports about this machine.";
  m.def("device_count", &device_count, "Number of usable CUDA devices; 0 without a driver.");
  m.def("devices", &devices, "Name, capability and sizes of every usable device.");
  m.def("error", &error, "Why no device is usable; '' if one is.");
  m.def("runtime_version", &runtime_version, "CUDA runtime inside this module, 1000 * major + 10 * minor.");
  m.def("driver_version", &driver_version, "Newest CUDA that the driver serves, as above; 0 = no driver.");
}
