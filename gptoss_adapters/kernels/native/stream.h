// File to file, one cache-sized chunk at a time: rows repacked from HF blocks and scales to GGML blocks, or plain bytes.
#pragma once
#include <cstdint>

#include "mxfp4_codec.h"

enum StreamResult : int32_t {
    STREAM_DONE = 0,
    STREAM_SOURCE_ENDS = 1,  // a source is shorter than it was
    STREAM_READ_FAILED = 2,  // of a source; errno in `error`
    STREAM_WRITE_FAILED = 3, // or read back; errno in `error`, 0 when bytes are missing
    STREAM_BAD_VALUE = 4,    // a scale byte of 255, NaN or Inf
    STREAM_DIFFERS = 5,      // byte `at` of output `output`
};

// What plain bytes are, of those that can hold a value to be refused.
enum StreamItems : int32_t { ITEMS_ANY = 0, ITEMS_BF16 = 1, ITEMS_F16 = 2, ITEMS_F32 = 3, ITEMS_MXFP4 = 4, ITEMS_Q8_0 = 5 };

// Twin: kernels/structs.py.
struct StreamArguments {
    int32_t in_fd[2];    // blocks and scales, or the plain bytes
    int64_t in_at[2];
    int64_t rows;        // of each output; plain: bytes
    int64_t groups;      // MXFP4 blocks per row; 0: plain bytes
    int32_t outputs;     // source rows go to the outputs in turn
    int32_t compare;     // read the outputs back and compare instead of writing them
    int32_t out_fd[2];
    int64_t out_at[2];
    int32_t items;       // StreamItems; bad values are looked for when comparing, where it costs no pass of its own
    int32_t error;
    int32_t output;
    int32_t padding;
    int64_t at;
    uint8_t* scratch;    // see scratch_bytes in native_stream.py
    int64_t chunk;       // bytes that one write puts down; a power of two
};

int32_t run_stream(const CodecKernels& codec, StreamArguments& a);
