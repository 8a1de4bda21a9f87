#pragma once
// Backward where resets return to the initial state: what the steps that start from it owe it. The product with R is
// linear, so their gate gradients are added up and multiplied once, at the end; from the last step to the first, by one
// thread a row, so that the sums are the same for any number of threads.
#include "rnn_backward.h"

namespace fastrnn {
namespace {
template <class Cell, class T>
void BackwardRun<Cell, T>::begin_initial(int64_t i) {
  const int64_t o = rows_.order[i], width = Hp_ > s_.out() ? Hp_ : s_.out();
  for (int e = 0; e < kExtra; ++e)
    c_entering(p_, Cell::kStates, e, d_, 0, rows_.batch[i], c_initial_ + (o * kExtra + e) * Hp_);
  fill_zero(dr_initial_ + o * ld_, ld_);
  fill_zero(dh_initial_ + o * width, width);
  fill_zero(dc_initial_ + o * kExtra * Hp_, kExtra * Hp_);
}

// Before step k overwrites what step k+1 left for it: rows that were reset between the two keep it for the end.
template <class Cell, class T>
void BackwardRun<Cell, T>::return_gradients(int64_t k, int64_t running) {
  const auto returns = [&](int64_t i) {
    return k + 1 < rows_.length[i] && fresh(rows_, i, k + 1) && !detached(rows_, i, k + 1);
  };
  bool any = false;
  for (int64_t i = 0; i < running; ++i) any = any || returns(i);
  if (!any) return;
  if (!Cell::kProduct) step_barrier();  // else the step before has ended with one
  const int64_t width = Hp_ > s_.out() ? Hp_ : s_.out();
  for (int64_t i = 0; i < running; ++i) {
    if (!mine(i) || !returns(i)) continue;
    const int64_t o = rows_.order[i];
    add_row(dr_after(i, k), serial_depth<Cell>(s_), dr_initial_ + o * ld_);
    if (!s_.P) add_row(dh_ + o * width, s_.H, dh_initial_ + o * width);
    for (int e = 0; e < kExtra; ++e) add_row(dc_ + (o * kExtra + e) * Hp_, s_.H, dc_initial_ + (o * kExtra + e) * Hp_);
  }
  step_barrier();
}

// Adds what step 0 owes, of which `row`, a_ and dc point to the parts, and points them to the sums.
template <class Cell, class T>
const T* BackwardRun<Cell, T>::with_returned(int64_t i, Row& row, const T* dc) {
  const int64_t o = rows_.order[i], width = Hp_ > s_.out() ? Hp_ : s_.out();
  T *dr = dr_initial_ + o * ld_, *dh = dh_initial_ + o * width, *all = dc_initial_ + o * kExtra * Hp_;
  if (mine(i)) {
    add_row(a_[i], serial_depth<Cell>(s_), dr);
    add_row(row.dh_in, s_.out(), dh);
    for (int e = 0; dc && e < kExtra; ++e) add_row(dc + e * Hp_, s_.H, all + e * Hp_);
  }
  a_[i] = dr;
  row.dh_in = dh;
  return all;
}
}  // namespace
}  // namespace fastrnn
