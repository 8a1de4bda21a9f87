// The attention decoder of one ISA. Compiled once per ISA, FASTRNN_ISA its name.
#include "decoder_backward.h"
#include "decoder_generate.h"
#include "decoder_table.h"
#include "isa.h"

namespace fastrnn {
#define FASTRNN_DECODER(Cell, T)                                                                           \
  {decoder_forward_scratch<Cell, T>, decoder_forward<Cell, T>,          decoder_backward_scratch<Cell, T>, \
   decoder_backward<Cell, T>,        decoder_generate_scratch<Cell, T>, decoder_generate<Cell, T>}
extern const DecoderTable FASTRNN_OF_ISA(decoder_table);
const DecoderTable FASTRNN_OF_ISA(decoder_table) = {
    FASTRNN_ISA_NAME,
    {FASTRNN_DECODER(LstmCell, float), FASTRNN_DECODER(GruCell, float)},
    {FASTRNN_DECODER(LstmCell, double), FASTRNN_DECODER(GruCell, double)}};
}  // namespace fastrnn
