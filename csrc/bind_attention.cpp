// Attention in fastrnn._core. Everything is checked in Python before it gets here.
#include <array>

#include "bind.h"
#include "cpu/engine.h"

using namespace fastrnn;

namespace {
struct AttentionArguments {
  int itemsize;
  AttentionShape shape;
  Address query, key, value, v, lengths, mask;
  std::array<int64_t, 3> mask_strides;

  template <class T>
  void fill(AdditiveInput<T>& p) const {
    p.shape = shape;
    p.query = at<const T>(query);
    p.key = at<const T>(key);
    p.value = at<const T>(value);
    p.v = at<const T>(v);
    p.lengths = at<const int64_t>(lengths);
    p.mask = at<const uint8_t>(mask);
    p.mask_stride_b = mask_strides[0];
    p.mask_stride_q = mask_strides[1];
    p.mask_stride_k = mask_strides[2];
  }
};

void additive_forward(const AttentionArguments& a, Address context, Address weights, int threads) {
  const auto call = [&](auto zero) {
    using E = decltype(zero);
    AdditiveForward<E> p{};
    a.fill(p);
    p.context = at<E>(context);
    p.weights = at<E>(weights);
    py::gil_scoped_release release;
    run_additive_forward(p, threads);
  };
  a.itemsize == 4 ? call(0.0f) : call(0.0);
}

void additive_backward(const AttentionArguments& a, Address weights, Address dcontext, Address dweights, Address dquery,
                       Address dkey, Address dvalue, Address dv, int threads) {
  const auto call = [&](auto zero) {
    using E = decltype(zero);
    AdditiveBackward<E> p{};
    a.fill(p);
    p.weights = at<const E>(weights);
    p.dcontext = at<const E>(dcontext);
    p.dweights = at<const E>(dweights);
    p.dquery = at<E>(dquery);
    p.dkey = at<E>(dkey);
    p.dvalue = at<E>(dvalue);
    p.dv = at<E>(dv);
    py::gil_scoped_release release;
    run_additive_backward(p, threads);
  };
  a.itemsize == 4 ? call(0.0f) : call(0.0);
}
}  // namespace

void bind_attention(py::module_& m) {
  py::class_<AttentionArguments>(m, "Attention")
      .def(py::init([](int itemsize, int64_t B, int64_t Tq, int64_t Tk, int64_t D, int64_t Dv, Address query,
                       Address key, Address value, Address v, Address lengths, Address mask,
                       std::array<int64_t, 3> mask_strides) {
        return AttentionArguments{itemsize, {B, Tq, Tk, D, Dv}, query, key, value, v, lengths, mask, mask_strides};
      }));
  m.def("additive_forward", &additive_forward);
  m.def("additive_backward", &additive_backward);
}
