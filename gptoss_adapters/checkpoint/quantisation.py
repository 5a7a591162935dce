"""Which quantisation a checkpoint that we do not read is in, and what its owner can do: by what its config states, else
by the names that only such a tool gives to tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gptoss_adapters.checkpoint.files import Source, locate, read_json
from gptoss_adapters.errors import BadInput

_MODELOPT_FILE = "hf_quant_config.json"
_FROM_BASE = "convert the MXFP4 or 16-bit checkpoint that it was made from"
_MERGED = "save the model merged to 16 bits, and convert that"
_MLX = "convert the checkpoint that it was made from, or undo it by mlx_lm.convert --dequantize"
_READ = ("mxfp4", "gpt_oss_mxfp4", "quark")  # an error in one of these is not the method's
_WAYS_OUT = {"bitsandbytes": _MERGED, "bnb": _MERGED, "mlx": _MLX}
_MARKS = (  # in a tensor's name -> whose it is
    ((".absmax", ".quant_state", ".quant_map", ".SCB", "bitsandbytes"), "bitsandbytes"),
    ((".qweight", ".qzeros", ".g_idx"), "gptq or awq"),
    (("weight_scale_inv",), "fp8"),
    (("_global_scale", "weight_scale_2"), "nvfp4"),
    ((".weight_shape",), "packed integers"),
    ((".codebooks", ".codebook"), "aqlm"),
)
_KINDS_OF_ERROR = (
    "unexpected tensor",
    "wrong dtype",
    "the tensor is missing",
    "no tensor name",
    "the shape does not fit",
)


def explain_quantised(error: BadInput, raw: Mapping[str, Any], root: Path, sources: Mapping[str, Source]) -> BadInput:
    """`error`, or what it comes from: weights in a quantisation that is not read, named, with the way out."""
    if not error.what.startswith(_KINDS_OF_ERROR):
        return error
    stated = _tell_stated(raw, root)
    found = _tell_by_names(sources) or _tell_by_types(sources.values())
    if stated == "compressed-tensors":  # which may hold MXFP4
        stated = found and f"{stated} ({found})"
    if (stated or "").partition(" ")[0] in _READ or "mxfp4" in (stated or "") or not (stated or found):
        return error
    if not found and all(source.dtype in ("BF16", "F16", "F32") for source in sources.values()):
        return error  # the statement is stale: nothing is quantised
    method = stated or found
    assert method is not None
    where = "" if stated else ", by its tensors' names"
    return BadInput(
        f"the weights are quantised by {method}{where}, which is not read",
        file=error.file or root,
        tensor=error.tensor,
        hint=_WAYS_OUT.get(method.partition(" ")[0], _FROM_BASE),
    )


def _tell_stated(raw: Mapping[str, Any], root: Path) -> str | None:
    """quant_method and what it says of the format, in words."""
    given = raw.get("quantization_config") or raw.get("quantization")
    if not isinstance(given, dict) and (root / _MODELOPT_FILE).is_file():
        file = read_json(root / _MODELOPT_FILE, locate(root, _MODELOPT_FILE)).get("quantization")
        given = {"quant_method": "modelopt", **file} if isinstance(file, dict) else None
    if not isinstance(given, dict):
        return None
    mlx = "group_size" in given and "quant_method" not in given
    method = given.get("quant_method") or ("mlx" if mlx else None)
    said = [given.get(key) for key in ("mode", "format", "quant_algo", "bits")]
    words = [f"{word}-bit" if isinstance(word, int) else str(word) for word in said if word is not None]
    return " ".join([str(method), *(f"({word})" for word in words[:2])]) if method else None


def _tell_by_types(sources: Iterable[Source]) -> str | None:
    return "fp8" if any(source.dtype in ("F8_E4M3", "F8_E5M2") for source in sources) else None


def _tell_by_names(names: Iterable[str]) -> str | None:
    names = list(names)
    return next((method for marks, method in _MARKS if any(mark in n for n in names for mark in marks)), None)
