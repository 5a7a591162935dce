"""The files of an adapter, whoever made it: PEFT (in one file or in shards), mlx-lm, or llama.cpp's converter.

An adapter is named by its folder, by its file of weights, or by a folder that holds one adapter's folder.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from gptoss_adapters.checkpoint.dtypes import DENSE, decode_q8_0
from gptoss_adapters.checkpoint.files import Array, MappedFile, Source, locate, read_json
from gptoss_adapters.checkpoint.formats.safetensors import SafetensorsFile, open_files
from gptoss_adapters.errors import BadInput

CONFIG = "adapter_config.json"
PEFT_WEIGHTS, MLX_WEIGHTS = "adapter_model.safetensors", "adapters.safetensors"
PEFT_PICKLES = ("adapter_model.bin", "adapter_model.pt")
_INDEX = f"{PEFT_WEIGHTS}.index.json"
_SHARD = re.compile(r"adapter_model-(\d{5})-of-(\d{5})\.safetensors")
_MLX_KEYS = ("fine_tune_type", "lora_parameters")


class Form(StrEnum):
    """Whose files they are."""

    PEFT = "peft"
    MLX = "mlx-lm"
    GGUF = "gguf"


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter's files, opened. `values`: its config, or a GGUF's metadata, which stand in the file `config`."""

    form: Form
    path: Path
    stored: dict[Path, MappedFile]
    tensors: dict[str, Source]
    config: Path
    values: dict[str, Any]

    def read(self, source: Source) -> Array:
        """The numbers as they are mapped, once they were seen to be finite. Raises BadInput."""
        data = self.stored[source.file].data[source.offset : source.offset + source.nbytes]
        if source.dtype == "Q8_0":
            values: Array = decode_q8_0(data).reshape(source.shape)
        elif source.dtype in DENSE:
            values = data.view(DENSE[source.dtype]).reshape(source.shape)
        else:
            raise self.fail("is not a matrix of numbers", source, expected=" or ".join(DENSE), got=f"{source.dtype}")
        if not np.isfinite(values).all():
            raise self.fail("holds NaN or Inf", source)
        return values

    def fail(
        self,
        what: str,
        source: Source | None = None,
        expected: object = None,
        got: object = None,
        hint: str | None = None,
    ) -> BadInput:
        """What is wrong with a tensor, or else with the config."""
        if source is None:
            return BadInput(what, file=self.config, expected=expected, got=got, hint=hint)
        return BadInput(what, file=source.file, tensor=source.name, expected=expected, got=got, hint=hint)


def find_adapter(path: Path) -> AdapterFiles:
    """Opens the adapter that a path, or a Hub repository id, names. Raises BadInput naming what is missing or amiss."""
    from gptoss_adapters.checkpoint.formats.hub import resolve_path

    where = resolve_path(path)
    if where.is_dir():
        return _open_folder(where)
    if where.suffix == ".gguf" or MappedFile(where, where.resolve()).data[:4].tobytes() == b"GGUF":
        return _open_gguf(where)
    if where.suffix == ".safetensors" and not _SHARD.fullmatch(where.name):
        return _open_safetensors(where.parent, [where.name])
    return _open_folder(where.parent)


def is_adapter(path: Path) -> bool:
    """Whether a folder holds an adapter and no model, or a file is one of its files."""
    folder = path if path.is_dir() else path.parent
    if path.suffix not in (".safetensors", ".json") and not path.is_dir():
        return False  # a GGUF beside an adapter is a file for itself
    if not (folder / CONFIG).is_file() or (folder / "config.json").exists():
        return False
    return any(folder.glob("adapter*.safetensors")) or not any(folder.glob("*.gguf"))


def _open_folder(folder: Path) -> AdapterFiles:
    if names := _list_weights(folder):
        return _open_safetensors(folder, names)
    for name in PEFT_PICKLES:
        if (folder / name).exists():
            raise BadInput(
                "is a pickle adapter, which can run code when loaded",
                file=folder / name,
                hint="save it as safetensors",
            )
    ggufs = sorted(folder.glob("*.gguf"))
    if len(ggufs) == 1:
        return _open_gguf(ggufs[0])
    inner = sorted(p.parent for p in folder.glob(f"*/{CONFIG}") if _list_weights(p.parent))
    if len(inner) == 1 and not (folder / CONFIG).exists():
        return _open_safetensors(inner[0], _list_weights(inner[0]))
    raise _explain_none(folder, [*ggufs, *inner])


def _explain_none(folder: Path, several: list[Path]) -> BadInput:
    if len(several) > 1:
        names = ", ".join(p.name for p in several)
        return BadInput("which adapter is meant is unclear", file=folder, got=names, hint="name one of them")
    if (folder / "config.json").exists():
        return BadInput("holds a model, not an adapter", file=folder, hint="--lora names an adapter")
    return BadInput(
        "holds no adapter",
        file=folder,
        expected=f"{CONFIG} with {PEFT_WEIGHTS} or {MLX_WEIGHTS}, or a GGUF",
        got=f"{CONFIG} alone" if (folder / CONFIG).exists() else None,
    )


def _list_weights(folder: Path) -> list[str]:
    """The names of the files of weights: PEFT's one file, else its complete set of shards, else mlx-lm's."""
    if (folder / PEFT_WEIGHTS).exists():
        return [PEFT_WEIGHTS]
    shards = sorted(p.name for p in folder.glob("adapter_model-*.safetensors"))
    if shards or (folder / _INDEX).exists():
        return _check_shards(folder, shards)
    return [MLX_WEIGHTS] if (folder / MLX_WEIGHTS).exists() else []


def _check_shards(folder: Path, shards: list[str]) -> list[str]:
    """The shards, once none is missing: by their numbers, and by the index where there is one. Raises BadInput."""
    numbered = [_SHARD.fullmatch(name) for name in shards]
    last = max((int(m[2]) for m in numbered if m), default=0)
    expected = [f"adapter_model-{n + 1:05d}-of-{last:05d}.safetensors" for n in range(last)]
    if (folder / _INDEX).exists():
        index = read_json(folder / _INDEX, locate(folder.resolve(), _INDEX)).get("weight_map")
        if not isinstance(index, dict) or not all(isinstance(v, str) for v in index.values()):
            raise BadInput("weight_map must map tensor names to file names", file=folder / _INDEX)
        expected = list(dict.fromkeys([*expected, *index.values()]))
    if missing := next((name for name in expected if name not in shards), None):
        raise BadInput("a shard of the adapter is missing", file=folder / missing, got=", ".join(shards) or None)
    if stray := next((name for name in shards if name not in expected), None):
        raise BadInput("a shard of another set lies beside the adapter", file=folder / stray)
    return shards


def _open_safetensors(folder: Path, names: list[str]) -> AdapterFiles:
    root = folder.resolve()
    values = read_json(folder / CONFIG, locate(root, CONFIG))
    if len(names) == 1:  # under the name by which it was given
        files = [SafetensorsFile(folder / names[0], locate(root, names[0]))]
    else:
        files = open_files(root, names, [])
    tensors = {name: source for file in files for name, source in file.tensors.items()}
    form = Form.MLX if any(key in values for key in _MLX_KEYS) else Form.PEFT
    return AdapterFiles(form, folder, {f.path: f for f in files}, tensors, folder / CONFIG, values)


def _open_gguf(path: Path) -> AdapterFiles:
    from gptoss_adapters.checkpoint.formats.gguf import GgufFile

    file = GgufFile(path, path.resolve())
    return AdapterFiles(Form.GGUF, path, {path: file}, file.tensors, path, file.metadata)
