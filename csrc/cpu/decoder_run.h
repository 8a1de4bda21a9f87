#pragma once
// Runs the attention decoder on the current instruction set.
#include "decoder_table.h"

namespace fastrnn {
template <class T>
void run_decoder_forward(DecoderCell cell, const DecoderForward<T>& p, int threads);  // threads 0 = num_threads()
template <class T>
void run_decoder_backward(DecoderCell cell, const DecoderBackward<T>& p, int threads);
template <class T>
void run_decoder_generate(DecoderCell cell, const DecoderGenerate<T>& p, int threads);
}  // namespace fastrnn
