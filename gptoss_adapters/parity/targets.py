"""Targets: a backend with what judging it needs: its identity, its file, its noise class, its known deviations."""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gptoss_adapters.backends import Arithmetic, Backend, open_backend
from gptoss_adapters.backends.prompt_texts import readable_length
from gptoss_adapters.checkpoint import Checkpoint, open_checkpoint
from gptoss_adapters.errors import GptOssError, NotComparable, UsageError
from gptoss_adapters.parity.logits.measure import TOP_K, Answer
from gptoss_adapters.parity.logits.probes import Prompt, lighten_prompts
from gptoss_adapters.parity.noise.arithmetic import noise_of
from gptoss_adapters.parity.noise.nulls import Noise
from gptoss_adapters.parity.report.schema import Identity

_OPTIONS = re.compile(r"(?P<name>[\w.:]+)\[(?P<options>[^\]]*)\](?P<rest>.*)")


@dataclass
class Target:
    """An open target. checkpoint: over its own file, where it has one that we can read."""

    spec: str
    backend: Backend
    checkpoint: Checkpoint | None

    @classmethod
    def open(cls, spec: str, checkpoint: Checkpoint, timeout: float, **options: Any) -> Target:
        """An engine for which the spec names no path gets the reference's own checkpoint, if it opens such. options:
        for the engine, beside those in the spec. Raises GptOssError.
        """
        plain, own_options = parse_spec(spec)
        backend = open_backend(plain, {"hf": checkpoint.path}, timeout=timeout, **options | own_options)
        if backend.info.vocab_size != checkpoint.config.vocab_size:
            size = backend.info.vocab_size
            backend.close()
            raise NotComparable(
                "has another vocabulary", file=redact_key(spec), expected=checkpoint.config.vocab_size, got=size
            )
        return cls(spec, backend, _open_own_file(backend))

    @property
    def engine(self) -> str:
        return self.backend.info.engine

    @property
    def arithmetic(self) -> Arithmetic:
        return self.backend.info.arithmetic

    @property
    def limited(self) -> bool:
        """Answers token by token: gets the light prompts."""
        return self.backend.info.capabilities.output == "top_k"

    def cut(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """What this engine can be asked of them: few and short ones if token by token; of those that go as text, what
        is read as the same ids up to every position.
        """
        if self.limited:
            prompts = lighten_prompts(prompts)
        if self.backend.info.capabilities.as_text:
            prompts = [replace(p, ids=p.ids[: readable_length(p.ids)]) for p in prompts]
        return [p for p in prompts if 0 < len(p.ids) <= self.backend.info.n_ctx]

    def answer(self, prompt: Prompt) -> Answer:
        output = self.backend.info.capabilities.output
        if output == "full":
            return Answer(self.backend.logits(prompt.ids))
        if output == "top_k":
            most = self.backend.info.capabilities.most or self.backend.info.vocab_size
            ids, logprobs = self.backend.top_logprobs(prompt.ids, min(TOP_K, most))
            return Answer(ids=ids, logprobs=logprobs)
        raise NotComparable(f"{self.engine} gives text only: no log-probabilities to compare")

    def noise(self, reference: Checkpoint) -> Noise:
        """What this engine may round, from its settings and its file."""
        return noise_of(self.arithmetic, self.backend.info.settings, self.checkpoint or reference)

    def identity(self) -> Identity:
        info = self.backend.info
        settings = {
            **info.settings,
            "n_ctx": info.n_ctx,
            "cpu": platform.processor() or platform.machine(),
            "python": platform.python_version(),
        }
        return Identity(info.engine, info.version, hash_files(self.checkpoint), settings)


def _open_own_file(backend: Backend) -> Checkpoint | None:
    """What the engine was opened on, where that is a file or folder here."""
    if not backend.path or not backend.info.opens or "://" in backend.path or not Path(backend.path).exists():
        return None
    try:
        return open_checkpoint(backend.path)
    except GptOssError:
        return None  # the engine took it; that we cannot read it will show in the report as weights not compared


def parse_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """`llama_cpp[cache_type=f16,flash_attn=true]=FILE` -> the backend's spec without its options, and those. Raises
    UsageError.
    """
    match = _OPTIONS.fullmatch(spec)
    if not match:
        return spec, {}
    options = {}
    for part in match["options"].split(","):
        name, equals, value = (x.strip() for x in part.partition("="))
        if not name.isidentifier() or not equals or not value:
            raise UsageError("bad options of a target", expected="NAME[OPTION=VALUE,..]", got=spec)
        options[name] = _value(value)
    return match["name"] + match["rest"], options


def redact_key(spec: str) -> str:
    """A spec as reports may say it: without a key."""
    return re.sub(r"(\bapi_key\s*=)[^,\]]*", r"\1***", spec) if _OPTIONS.fullmatch(spec) else spec


def _value(text: str) -> Any:
    """A number, true, false or none, else the text."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return {"true": True, "false": False, "none": None}.get(text, text)


def hash_files(checkpoint: Checkpoint | None) -> dict[str, str]:
    """sha256 of every file of a checkpoint: weights, config, tokenizer."""
    if checkpoint is None:
        return {}
    files = [
        *checkpoint.stored,
        *([checkpoint.config_file] if checkpoint.config_file else []),
        *checkpoint.tokenizer_files.values(),
    ]
    return {f.name: _sha256(f) for f in sorted(set(files))}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
