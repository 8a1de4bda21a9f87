// The attention kernels in fastrnn._cuda. Everything is checked in Python before it gets here.
#include <array>

#include "attention.h"
#include "bind.h"

namespace py = pybind11;
using namespace fastrnn;

namespace {
using Pairs = std::pair<Address, std::array<int64_t, 3>>;  // an array [B, Tq, Tk]: its address and strides
using Sizes = std::array<int64_t, 4>;                      // B, Tq, Tk, D

AttentionShape shape_of(const Sizes& n) { return {n[0], n[1], n[2], n[3], 0}; }
PairStrides strides_of(const Pairs& pairs) { return {pairs.second[0], pairs.second[1], pairs.second[2]}; }

constexpr const char* kActivationNames[] = {"tanh", "relu"};  // in the order of CudaActivation

const CudaAttentionKernels& kernels_of(const std::string& dtype) {
  return kAttentionKernels[index_of(kTypeNames, dtype, "dtype")];
}
// Runs one kernel on a device, on a stream.
template <class Params>
void run(cudaError_t (*kernel)(const Params&, cudaStream_t), const Params& p, int device, Address stream,
         const char* name) {
  const OnDevice guard(device);
  capability_of(device);
  py::gil_scoped_release release;
  check(kernel(p, at<CUstream_st>(stream)), name);
}

void attention_softmax(const std::string& dtype, int device, Address stream, const Sizes& sizes, Address lengths,
                       const Pairs& mask, const Pairs& bias, double scale, Address scores, Address weights) {
  CudaSoftmax p{};
  p.shape = shape_of(sizes);
  p.lengths = at<const int64_t>(lengths);
  p.mask = at<const uint8_t>(mask.first);
  p.mask_strides = strides_of(mask);
  p.bias = at<void>(bias.first);
  p.bias_strides = strides_of(bias);
  p.scale = scale;
  p.scores = at<void>(scores);
  p.weights = at<void>(weights);
  run(kernels_of(dtype).softmax, p, device, stream, "attention_softmax");
}

void attention_softmax_gradient(const std::string& dtype, int device, Address stream, const Sizes& sizes, double scale,
                                Address weights, Address dweights, Address gradient, Address dbias) {
  CudaSoftmaxGradient p{};
  p.shape = shape_of(sizes);
  p.scale = scale;
  p.weights = at<void>(weights);
  p.dweights = at<void>(dweights);
  p.gradient = at<void>(gradient);
  p.dbias = at<void>(dbias);
  run(kernels_of(dtype).softmax_gradient, p, device, stream, "attention_softmax_gradient");
}

void fill(CudaAdditive& p, const Sizes& sizes, const std::array<Address, 4>& inputs) {
  p.shape = shape_of(sizes);
  p.query = at<void>(inputs[0]);
  p.key = at<void>(inputs[1]);
  p.v = at<void>(inputs[2]);
  p.lengths = at<const int64_t>(inputs[3]);
}

void additive_scores(const std::string& dtype, int device, Address stream, const Sizes& sizes,
                     const std::string& activation, const std::array<Address, 4>& inputs, Address scores) {
  CudaAdditiveScores p{};
  fill(p, sizes, inputs);
  p.scores = at<void>(scores);
  run(kernels_of(dtype).additive_scores[index_of(kActivationNames, activation, "activation")], p, device, stream,
      "additive_scores");
}

void additive_gradients(const std::string& dtype, int device, Address stream, const Sizes& sizes,
                        const std::string& activation, const std::array<Address, 4>& inputs, Address dscores,
                        Address dquery, Address dkey, Address dquery_sums, Address dv_parts) {
  CudaAdditiveGradients p{};
  fill(p, sizes, inputs);
  p.dscores = at<void>(dscores);
  p.dquery = at<void>(dquery);
  p.dkey = at<void>(dkey);
  p.dquery_sums = at<void>(dquery_sums);
  p.dv_parts = at<void>(dv_parts);
  run(kernels_of(dtype).additive_gradients[index_of(kActivationNames, activation, "activation")], p, device, stream,
      "additive_gradients");
}
}  // namespace

void bind_attention(py::module_& m) {
  m.def("attention_softmax", &attention_softmax);
  m.def("attention_softmax_gradient", &attention_softmax_gradient);
  m.def("additive_scores", &additive_scores);
  m.def("additive_gradients", &additive_gradients);
}
