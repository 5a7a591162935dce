"""The structs that native functions take by address, as the C++ headers declare them (a test compares the two)."""

from __future__ import annotations

import ctypes
from ctypes import c_double, c_float, c_int32, c_int64, c_uint32, c_void_p

SOURCE_F32, SOURCE_BF16 = 0, 1  # SourceType in mxfp4_codec.h


class EncodeRule(ctypes.Structure):
    """mxfp4_encode.h"""

    _fields_ = (
        ("round_up", c_uint32),
        ("ties_to_even", c_int32),
        ("keep_minus_zero", c_int32),
        ("search", c_int32),
    )


class EncodeStats(ctypes.Structure):
    """mxfp4_encode.h"""

    _fields_ = (
        ("error", c_double),
        ("power", c_double),
        ("changed", c_int64),
        ("zero_blocks", c_int64),
        ("minus_zeros", c_int64),
        ("max_codes", c_int64 * 8),
    )


class MoeArguments(ctypes.Structure):
    """products.h"""

    _fields_ = (
        ("gate_up_blocks", c_void_p),
        ("gate_up_scales", c_void_p),
        ("gate_up_bias", c_void_p),
        ("down_blocks", c_void_p),
        ("down_scales", c_void_p),
        ("down_bias", c_void_p),
        ("hidden", c_int64),
        ("inter", c_int64),
        ("experts", c_int64),
        ("tokens", c_int64),
        ("top_k", c_int64),
        ("x", c_void_p),
        ("ids", c_void_p),
        ("weights", c_void_p),
        ("y", c_void_p),
        ("alpha", c_float),
        ("limit", c_float),
        ("precision", c_int32),
        ("threads", c_int32),
    )


class AttendArguments(ctypes.Structure):
    """layer_ops.h"""

    _fields_ = (
        ("q", c_void_p),
        ("k", c_void_p),
        ("v", c_void_p),
        ("sinks", c_void_p),
        ("q_positions", c_void_p),
        ("k_positions", c_void_p),
        ("out", c_void_p),
        ("kv_stride", c_int64),
        ("k_positions_stride", c_int64),
        ("batch", c_int64),
        ("queries", c_int64),
        ("keys", c_int64),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("head_dim", c_int64),
        ("window", c_int64),
        ("threads", c_int32),
    )


class PackedMatrix(ctypes.Structure):
    """bf16_packed.h"""

    _fields_ = (
        ("data", c_void_p),
        ("first", c_void_p),
        ("column", c_void_p),
        ("value", c_void_p),
        ("rows", c_int64),
        ("width", c_int64),
        ("groups", c_int64),
        ("base", c_int32),
        ("threads", c_int32),
    )


class StreamArguments(ctypes.Structure):
    """stream.h, where the fields are explained."""

    _fields_ = (
        ("in_fd", c_int32 * 2),
        ("in_at", c_int64 * 2),
        ("rows", c_int64),
        ("groups", c_int64),
        ("outputs", c_int32),
        ("compare", c_int32),
        ("out_fd", c_int32 * 2),
        ("out_at", c_int64 * 2),
        ("items", c_int32),
        ("error", c_int32),
        ("output", c_int32),
        ("padding", c_int32),
        ("at", c_int64),
        ("scratch", c_void_p),
        ("chunk", c_int64),
    )


class FieldLayout(ctypes.Structure):
    """layouts.cpp: where C++ put a field of one of the structs above; the field "" stands for the whole."""

    _fields_ = (
        ("structure", ctypes.c_char_p),
        ("field", ctypes.c_char_p),
        ("offset", c_int64),
        ("bytes", c_int64),
    )
