// Attention in fastrnn._core. Everything is checked in Python before it gets here.
#include <array>
#include <string>

#include "bind.h"
#include "cpu/attention_table.h"
#include "cpu/engine.h"

using namespace fastrnn;

namespace {
using Strides = std::array<int64_t, 3>;

ScoreId score_id(const std::string& name) {
  std::string names;
  for (int i = 0; i < kNumScores; ++i) {
    if (name == kScores[i].name) return ScoreId(i);
    names += std::string(names.empty() ? "" : ", ") + kScores[i].name;
  }
  throw std::invalid_argument("fastrnn: score is '" + name + "', expected one of: " + names);
}

struct AttentionArguments {
  ScoreId score;
  int itemsize;
  AttentionShape shape;
  Address query, key, value, v, lengths, mask, bias;
  Strides mask_strides, bias_strides;
  double scale;

  template <class T>
  void fill(AttentionInput<T>& p) const {
    p.shape = shape;
    p.query = at<const T>(query);
    p.key = at<const T>(key);
    p.value = at<const T>(value);
    p.v = at<const T>(v);
    p.lengths = at<const int64_t>(lengths);
    p.mask = at<const uint8_t>(mask);
    p.mask_strides = {mask_strides[0], mask_strides[1], mask_strides[2]};
    p.bias = at<const T>(bias);
    p.bias_strides = {bias_strides[0], bias_strides[1], bias_strides[2]};
    p.scale = T(scale);
  }
};

void attention_forward(const AttentionArguments& a, Address context, Address weights, int threads) {
  const auto call = [&](auto zero) {
    using E = decltype(zero);
    AttentionForward<E> p{};
    a.fill(p);
    p.context = at<E>(context);
    p.weights = at<E>(weights);
    run_interruptible("", threads, [&](const RunOptions& options) { run_attention_forward(a.score, p, options); });
  };
  a.itemsize == 4 ? call(0.0f) : call(0.0);
}

void attention_backward(const AttentionArguments& a, Address weights, Address dcontext, Address dweights,
                        Address dquery, Address dkey, Address dvalue, Address dv, Address dbias, int threads) {
  const auto call = [&](auto zero) {
    using E = decltype(zero);
    AttentionBackward<E> p{};
    a.fill(p);
    p.weights = at<const E>(weights);
    p.dcontext = at<const E>(dcontext);
    p.dweights = at<const E>(dweights);
    p.dquery = at<E>(dquery);
    p.dkey = at<E>(dkey);
    p.dvalue = at<E>(dvalue);
    p.dv = at<E>(dv);
    p.dbias = at<E>(dbias);
    run_interruptible("", threads, [&](const RunOptions& options) { run_attention_backward(a.score, p, options); });
  };
  a.itemsize == 4 ? call(0.0f) : call(0.0);
}
}  // namespace

void bind_attention(py::module_& m) {
  py::list scores;
  for (const ScoreInfo& score : kScores) scores.append(score.name);
  m.attr("SCORES") = scores;
  py::class_<AttentionArguments>(m, "Attention")
      .def(py::init([](const std::string& score, int itemsize, int64_t B, int64_t Tq, int64_t Tk, int64_t D, int64_t Dv,
                       Address query, Address key, Address value, Address v, Address lengths, Address mask,
                       Strides mask_strides, Address bias, Strides bias_strides, double scale) {
        return AttentionArguments{
            score_id(score), itemsize, {B, Tq, Tk, D, Dv}, query, key, value, v, lengths, mask, bias, mask_strides,
            bias_strides,    scale};
      }));
  m.def("attention_forward", &attention_forward);
  m.def("attention_backward", &attention_backward);
}
