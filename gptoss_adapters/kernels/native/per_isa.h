// For files that are compiled once per instruction set, KERNELS_ISA: `OF_THIS_ISA(codec)` is `codec_avx2` in avx2's object.
#pragma once

#define KERNELS_CONCAT_(stem, isa) stem##_##isa
#define KERNELS_CONCAT(stem, isa) KERNELS_CONCAT_(stem, isa)
#define OF_THIS_ISA(stem) KERNELS_CONCAT(stem, KERNELS_ISA)
