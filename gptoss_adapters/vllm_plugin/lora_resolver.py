"""Finds LoRA adapters by name in a folder, and tells the client what is wrong with one before a worker meets it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from vllm.exceptions import VLLMValidationError
from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver

from gptoss_adapters.checkpoint.adapters.finding import CONFIG
from gptoss_adapters.errors import GptOssError
from gptoss_adapters.vllm_plugin.decision import open_local
from gptoss_adapters.vllm_plugin.lora_reading import read_adapter


class FolderResolver(LoRAResolver):
    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """The request for the adapter of this name, None if there is none. Raises VLLMValidationError, which the
        client reads, for one that cannot be served.
        """
        path = self.find(lora_name)
        if path is None:
            return None
        problem = await asyncio.to_thread(find_problem, base_model_name, path)
        if problem:
            raise VLLMValidationError(f"LoRA adapter {lora_name}: {problem}", parameter="model")
        return LoRARequest(lora_name=lora_name, lora_int_id=1, lora_path=str(path))  # vLLM numbers it

    def find(self, name: str) -> Path | None:
        """The adapter's folder; names never lead out of ours."""
        try:
            path = (self.folder / name).resolve()
            inside = path != self.folder and path.is_relative_to(self.folder)
            return path if inside and (path / CONFIG).is_file() else None
        except (OSError, ValueError):  # not a name that a file could have
            return None


def find_problem(base: str, path: Path) -> str | None:
    """What is wrong with the adapter for this base, in one line without the server's folders; None if nothing, or if
    the base's files are not at hand: then the workers judge.
    """
    try:
        checkpoint = open_local(base)
    except (GptOssError, OSError):
        return None
    if checkpoint is None:
        return None
    try:
        read_adapter(path, checkpoint.config, checkpoint)
    except GptOssError as error:
        return str(error).replace(f"{path}/", "").replace(str(path), path.name)
    return None
