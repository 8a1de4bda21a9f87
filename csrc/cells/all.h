#pragma once
// The list of cells: one word here instantiates a cell in every schedule, ISA and binding. Those of the first list can
// be regularised and recomputed on CUDA as well, where that takes kernels of its own; so do those of the last list,
// whose units need each other inside a step beyond the product.
#include "augru.h"
#include "fastgrnn.h"
#include "fastrnn.h"
#include "gru.h"
#include "gru_norm.h"
#include "gru_reset_before.h"
#include "indrnn.h"
#include "lstm.h"
#include "lstm_cifg.h"
#include "lstm_norm.h"
#include "lstm_peephole.h"
#include "mingru.h"
#include "minlstm.h"
#include "rnn.h"
#include "slstm.h"

#define FASTRNN_FOR_EACH_REGULARISED_CELL(X) \
  X(rnn_tanh, RnnTanhCell)                   \
  X(rnn_relu, RnnReluCell)                   \
  X(rnn_sigmoid, RnnSigmoidCell)             \
  X(lstm, LstmCell)                          \
  X(lstm_hard, LstmHardCell)                 \
  X(lstm_cifg, LstmCifgCell)                 \
  X(lstm_peephole, LstmPeepholeCell)         \
  X(slstm, SlstmCell)                        \
  X(slstm_exponential, SlstmExponentialCell) \
  X(gru, GruCell)                            \
  X(gru_hard, GruHardCell)                   \
  X(gru_reset_before, GruResetBeforeCell)    \
  X(gru_reset_before_hard, GruResetBeforeHardCell)

#define FASTRNN_FOR_EACH_POINTWISE_CELL(X) \
  FASTRNN_FOR_EACH_REGULARISED_CELL(X)     \
  X(fastrnn, FastRnnCell)                  \
  X(fastgrnn, FastGrnnCell)                \
  X(indrnn_tanh, IndRnnTanhCell)           \
  X(indrnn_relu, IndRnnReluCell)           \
  X(mingru, MinGruCell)                    \
  X(minlstm, MinLstmCell)                  \
  X(augru, AugruCell)

#define FASTRNN_FOR_EACH_NORMALISED_CELL(X) \
  X(lstm_norm, LstmNormCell)                \
  X(gru_norm, GruNormCell)

#define FASTRNN_FOR_EACH_CELL(X)     \
  FASTRNN_FOR_EACH_POINTWISE_CELL(X) \
  FASTRNN_FOR_EACH_NORMALISED_CELL(X)
