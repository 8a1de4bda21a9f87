#pragma once
// The kernel table in use: the best ISA that this CPU runs, unless FASTRNN_ISA or set_isa() names another.
#include <string>
#include <vector>

#include "table.h"

namespace fastrnn {
const CpuTable& cpu_table();
void set_isa(const std::string& isa);  // "" = best; throws std::invalid_argument
std::vector<std::string> isas();       // what this CPU runs, best first
}  // namespace fastrnn
