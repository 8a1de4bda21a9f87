#include "dispatch.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace fastrnn {
extern const CpuTable table_scalar;
#if defined(__x86_64__)
extern const CpuTable table_avx2, table_avx512;
#endif

namespace {
struct Entry {
  const CpuTable* table;
  bool (*runs_here)();
};
const Entry kTables[] = {
#if defined(__x86_64__)
    {&table_avx512,
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
     }},
    {&table_avx2, [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
#endif
    {&table_scalar, [] { return true; }},
};
std::atomic<const CpuTable*> current{nullptr};
}  // namespace

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const Entry& e : kTables)
    if (e.runs_here()) names.push_back(e.table->isa);
  return names;
}

void set_isa(const std::string& isa) {
  std::string have;
  for (const Entry& e : kTables) {
    if (!e.runs_here()) continue;
    if (isa.empty() || isa == e.table->isa) {
      current = e.table;
      return;
    }
    have += std::string(have.empty() ? "" : ", ") + e.table->isa;
  }
  throw std::invalid_argument("fastrnn: ISA '" + isa + "' cannot run here, expected one of: " + have);
}

const CpuTable& cpu_table() {
  if (const CpuTable* table = current) return *table;
  const char* forced = std::getenv("FASTRNN_ISA");
  set_isa(forced ? forced : "");
  return *current;
}
}  // namespace fastrnn
