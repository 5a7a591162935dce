"""Which weight files vLLM reads for its model: a folder's, or those that the Hub's cache holds at vLLM's own revision
and download dir. What is not complete there is "not here yet".

vLLM's default loader reads the safetensors files of the folder itself, without those that an index does not name.
Other loaders (dummy weights, streamed ones, shards of a saved state) read something else, or nothing.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from gptoss_adapters.checkpoint.files import read_json
from gptoss_adapters.checkpoint.formats.safetensors import INDEX

if TYPE_CHECKING:
    from vllm.config import VllmConfig

# Load formats in which vLLM's loader reads plain safetensors files. A checkpoint of Mistral's own names is not ours.
_READING = ("auto", "hf", "safetensors", "fastsafetensors", "instanttensor")
_MISTRAL = "consolidated*.safetensors"
_SHARD = re.compile(r"(.*?)-+(\d+)-of-(\d+)\.safetensors")


def find_served(vllm_config: VllmConfig, *, download: bool = False) -> list[Path] | None:
    """The safetensors files that vLLM will load, or None: they are not here yet, or it loads something else.

    `download`: if they are not here, vLLM's own loader fetches them first, under its lock, so that the first start
    sees what the second does. Whatever stops it (no network, no such revision) vLLM meets again by itself.
    """
    load = vllm_config.load_config
    if str(load.load_format) not in _READING or _uses_modelscope():
        return None
    model = vllm_config.model_config
    found = find_files(str(model.model), model.revision, load.download_dir)
    if found is None and download and not Path(model.model).is_dir():
        _download(vllm_config)
        found = find_files(str(model.model), model.revision, load.download_dir)
    return found


def find_files(model: str, revision: str | None = None, download_dir: str | None = None) -> list[Path] | None:
    """The complete set of safetensors files of a folder, or of a repository's snapshot in the Hub's cache; nothing is
    fetched. Raises BadInput for an index that cannot be read, OSError for a folder that cannot.
    """
    folder = _find_folder(model, revision, download_dir)
    if folder is None or any(folder.glob(_MISTRAL)):
        return None
    present = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
    index = folder / INDEX
    if index.is_file():
        named = set(map(str, _read_index(index).values()))
        missing = named - {path.name for path in present}
        return None if missing else [path for path in present if path.name in named]
    return present if present and not _lacks_shard([path.name for path in present]) else None


def _read_index(index: Path) -> dict[str, str]:
    weight_map = read_json(index, index.resolve()).get("weight_map")
    return weight_map if isinstance(weight_map, dict) else {}


def _lacks_shard(names: list[str]) -> bool:
    """Whether the names are some, not all, of a numbered set: `of N` counts the files from one, or names the last of
    zero-based ones.
    """
    sets: dict[tuple[str, int], set[int]] = {}
    for name in names:
        if match := _SHARD.fullmatch(name):
            sets.setdefault((match[1], int(match[3])), set()).add(int(match[2]))
    return any(not there.issuperset(range(0 if 0 in there else 1, last + 1)) for (_, last), there in sets.items())


def _find_folder(model: str, revision: str | None, download_dir: str | None) -> Path | None:
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    try:
        # The pattern: to the Hub's library a snapshot with the weights alone, as in a download dir, is incomplete.
        found = snapshot_download(
            model, revision=revision, cache_dir=download_dir, allow_patterns=[INDEX], local_files_only=True
        )
        return Path(found)
    except Exception:  # not a repository, not in the cache: vLLM's loader goes its own way
        return None


def _uses_modelscope() -> bool:
    from vllm import envs

    return bool(getattr(envs, "VLLM_USE_MODELSCOPE", False))


def _download(vllm_config: VllmConfig) -> None:
    from vllm.model_executor.model_loader import get_model_loader

    try:
        get_model_loader(vllm_config.load_config).download_model(vllm_config.model_config)
    except Exception:  # vLLM's loader comes to the same place next, and says it better
        return
