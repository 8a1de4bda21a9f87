#pragma once
// Names of what is compiled once per ISA: FASTRNN_OF_ISA(table) is table_avx512 where FASTRNN_ISA is avx512.
#define FASTRNN_CAT_(a, b) a##_##b
#define FASTRNN_CAT(a, b) FASTRNN_CAT_(a, b)
#define FASTRNN_OF_ISA(name) FASTRNN_CAT(name, FASTRNN_ISA)
#define FASTRNN_STR_(a) #a
#define FASTRNN_STR(a) FASTRNN_STR_(a)
#define FASTRNN_ISA_NAME FASTRNN_STR(FASTRNN_ISA)
