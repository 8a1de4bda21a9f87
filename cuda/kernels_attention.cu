// The attention kernels of every element type.
#include "additive_gradients.cuh"
#include "additive_scores.cuh"

namespace fastrnn {
template <class E>
constexpr CudaAttentionKernels attention_kernels() {
  return {&launch_softmax<E>,
          &launch_softmax_gradient<E>,
          {&launch_additive_scores<AdditiveTanh, E>, &launch_additive_scores<AdditiveRelu, E>},
          {&launch_additive_gradients<AdditiveTanh, E>, &launch_additive_gradients<AdditiveRelu, E>}};
}
const CudaAttentionKernels kAttentionKernels[] = {attention_kernels<float>(), attention_kernels<double>(),
                                                  attention_kernels<__nv_bfloat16>(), attention_kernels<__half>()};
}  // namespace fastrnn
