// The attention kernels of one ISA. Compiled once per ISA, FASTRNN_ISA its name.
#include "additive.h"
#include "attention_table.h"
#include "isa.h"

namespace fastrnn {
#define FASTRNN_ATTENTION(T) {additive_scratch<T>, additive_forward<T>, additive_backward<T>}
extern const AttentionTable FASTRNN_OF_ISA(attention_table);
const AttentionTable FASTRNN_OF_ISA(attention_table) = {FASTRNN_ATTENTION(float), FASTRNN_ATTENTION(double)};
}  // namespace fastrnn
