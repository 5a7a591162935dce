// One row for each instruction set, and how to tell that a machine has it. A new one needs a row here, its flags in
// CMakeLists.txt, its vector operations in vec.h and its name in library.py.
#include "isas.h"

#include <cstring>
#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

// Fastest first: name, and the products with many vectors that it has, for more and more of them.
#if defined(KERNELS_HAVE_AMX)  // not every compiler knows it
#define AMX(X) X(amx, &gemm_vnni, &gemm_amx)
#else
#define AMX(X)
#endif
#if defined(__x86_64__)
#define FOR_EACH_ISA(X)                 \
    AMX(X)                              \
    X(avx512vbmi, &gemm_vnni, nullptr)  \
    X(avx512vnni, &gemm_vnni, nullptr)  \
    X(avx2, nullptr, nullptr)           \
    X(portable, nullptr, nullptr)
#elif defined(__aarch64__)
#define FOR_EACH_ISA(X)       \
    X(neon, nullptr, nullptr) \
    X(portable, nullptr, nullptr)
#else
#define FOR_EACH_ISA(X) X(portable, nullptr, nullptr)
#endif

#define DECLARE(name, few, many)           \
    extern const CodecKernels codec_##name;   \
    extern const EncodeKernels encode_##name; \
    extern const LayerKernels layer_##name;   \
    extern const MatmulKernels matmul_##name; \
    extern const PackedKernels packed_##name;
extern "C" {
extern const GemmKernels gemm_amx, gemm_vnni;
FOR_EACH_ISA(DECLARE)
}

namespace {

bool has_portable() { return true; }
#if defined(__x86_64__)
bool has_avx2() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
bool has_avx512vnni() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}
bool has_avx512vbmi() { return has_avx512vnni() && __builtin_cpu_supports("avx512vbmi"); }
// The tile registers must also be asked for, once for the process.
bool has_amx() {
    unsigned a, b, c, d;
    if (!has_avx512vbmi() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    constexpr unsigned AMX_BF16 = 1u << 22, AMX_TILE = 1u << 24;
    constexpr long ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
    return (d & AMX_BF16) && (d & AMX_TILE) && syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}
#endif
#if defined(__aarch64__)
bool has_neon() { return getauxval(AT_HWCAP) & (1 << 20); }  // HWCAP_ASIMDDP
#endif

#define ROW(name, few, many) \
    {#name, has_##name, &codec_##name, &encode_##name, &layer_##name, &packed_##name, {&matmul_##name, {few, many}}},
const Isa ISAS[] = {FOR_EACH_ISA(ROW)};

}  // namespace

const Isa* find_isa(const char* name) {
    for (const Isa& isa : ISAS)
        if ((!*name || strcmp(name, isa.name) == 0) && isa.usable()) return &isa;
    return nullptr;
}
