#pragma once
// minGRU (Feng et al. 2024, arXiv 2410.01201, section 3.1): gates that do not look at the past.
//   z = sigmoid(x_z)   n = x_n   h' = (1 - z)*h + z*n;  r is the bias alone, there is no recurrent matrix.
#include "cell.h"

namespace fastrnn {
struct MinGruCell : CellDefaults {
  static constexpr int kGates = 2;   // z n
  static constexpr int kStates = 1;  // h
  static constexpr int kSaved = 2;   // z n
  static constexpr bool kReadsH = true;
  static constexpr bool kProduct = false;

  template <class V>
  FASTRNN_HD static void forward(const V* x, const V* r, const V* s, V* s_new, V* saved) {
    const V z = sigmoid(x[0] + r[0]), n = x[1] + r[1];
    s_new[0] = (V(1) - z) * s[0] + z * n;
    saved[0] = z;
    saved[1] = n;
  }
  template <class V>
  FASTRNN_HD static void backward(const V* saved, const V* s, const V*, const V* ds_new, V* dx, V* dr, V* ds) {
    const V z = saved[0], n = saved[1], dh = ds_new[0];
    dx[0] = dr[0] = dh * (n - s[0]) * d_sigmoid(z);
    dx[1] = dr[1] = dh * z;
    ds[0] = dh - dx[1];
  }
};
}  // namespace fastrnn
