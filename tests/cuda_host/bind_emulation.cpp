// What the tests may set in the emulation.
#include <pybind11/pybind11.h>

#include "../../cuda/device.cuh"

namespace py = pybind11;

void bind_emulation(py::module_& m) {
  using fastrnn::emulation::settings;
  m.attr("SITES") = int(fastrnn::device::kSiteCount);
  m.def("set_seed", [](unsigned seed) { settings.seed = seed; });
  m.def("leave_out_barrier", [](int site, bool left_out) { settings.left_out[site] = left_out; });
  m.def("set_largest_cluster", [](int ctas) { settings.largest_cluster = ctas; });
  m.def("set_capability", [](int major) { settings.capability = major; });
  m.def("set_old_driver", [](bool old) { settings.old_driver = old; });
  m.def("set_launches_fail", [](bool fail) { settings.launches_fail = fail; });
  m.def("set_wrong_lane", [](int distance) { settings.wrong_lane = distance; });
  m.def("set_push_offset", [](int bytes) { settings.push_offset = bytes; });
}
