#pragma once
// Runs the attention decoder on the current instruction set.
#include "decoder_table.h"
#include "engine.h"

namespace fastrnn {
template <class T>
void run_decoder_forward(DecoderCell cell, const DecoderForward<T>& p, const RunOptions& options);
template <class T>
void run_decoder_backward(DecoderCell cell, const DecoderBackward<T>& p, const RunOptions& options);
template <class T>
void run_decoder_generate(DecoderCell cell, const DecoderGenerate<T>& p, const RunOptions& options);
}  // namespace fastrnn
