// Portable baseline: whatever the compiler targets without flags (SSE2 on x86-64, NEON on arm64).
#define FASTRNN_ISA scalar
#include "isa_body.h"
