// The instruction sets that this library was built for, and what each computes with.
#pragma once
#include "bf16_packed.h"
#include "layer_ops.h"
#include "mxfp4_codec.h"
#include "mxfp4_encode.h"
#include "products.h"

struct Isa {
    const char* name;
    bool (*usable)();  // on this machine
    const CodecKernels* codec;
    const EncodeKernels* encode;
    const LayerKernels* layer;
    const PackedKernels* packed;
    ProductKernels products;
};

// By name, or the fastest usable for "". Null when it is unknown or this machine lacks it.
const Isa* find_isa(const char* name);
