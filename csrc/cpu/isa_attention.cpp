// The attention kernels of one ISA. Compiled once per ISA, FASTRNN_ISA its name.
#include "additive.h"
#include "attention_run.h"
#include "dot.h"
#include "isa.h"

namespace fastrnn {
#define FASTRNN_ROW(Score, T)                                                              \
  {Score<T>::kWorthWaking, attention_scratch<Score<T>, T>, attention_forward<Score<T>, T>, \
   attention_backward<Score<T>, T>},
#define FASTRNN_ROW_F32(name, Score) FASTRNN_ROW(Score, float)
#define FASTRNN_ROW_F64(name, Score) FASTRNN_ROW(Score, double)
extern const AttentionTable FASTRNN_OF_ISA(attention_table);
const AttentionTable FASTRNN_OF_ISA(attention_table) = {{FASTRNN_FOR_EACH_SCORE(FASTRNN_ROW_F32)},
                                                        {FASTRNN_FOR_EACH_SCORE(FASTRNN_ROW_F64)}};
}  // namespace fastrnn
