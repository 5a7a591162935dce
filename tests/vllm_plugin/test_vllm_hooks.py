"""Each hook of the plugin decides for itself, by what the vLLM at hand has; and no other plugin is overwritten."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gptoss_adapters.vllm_plugin import hooks, log
from gptoss_adapters.vllm_plugin.probing import Need, Sources, find_obstacle

pytestmark = pytest.mark.backend("vllm")
ALL = tuple(hook.name for hook in hooks.HOOKS)


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GPTOSS_ADAPTERS_VLLM", "VLLM_PLUGINS", "RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def lines() -> Iterator[list[tuple[int, str]]]:
    found: list[tuple[int, str]] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append((record.levelno, record.getMessage()))  # type: ignore[method-assign]
    log.addHandler(handler)
    level, _ = log.level, log.setLevel(logging.DEBUG)
    yield found
    log.removeHandler(handler)
    log.setLevel(level)


def stay_out(sources: Sources | None = None) -> dict[str, str]:
    return {verdict.hook.name: verdict.why_not for verdict in hooks.judge(sources) if not verdict.is_in}


# Probing --------------------------------------------------------------------------------------------------------------

PACKAGE = {
    "__init__.py": "from vllm.core import *\nfrom .parts import Made as Renamed\n",
    "core.py": "try:\n    import fast\nexcept ImportError:\n    pass\ndef run(a, b, *, c=1): ...\nchosen = run\n",
    "parts/__init__.py": "from vllm.parts.made import Made, Field\n",
    "parts/made.py": "from typing import NamedTuple\nclass Base:\n    def go(self, x, **more): ...\n    kind = 1\n"
    "class Made(Base):\n    def __init__(self, size): ...\nclass Field(NamedTuple):\n"
    "    a: int\n    b: str = ''\nmade = Made(1)\n",
}
MET: list[Need] = [
    Need("vllm:run", ("a", "b")),
    Need("vllm:run", ("a", "b", "c"), replaced=True),
    Need("vllm:chosen"),
    Need("vllm:Renamed", ("size",)),
    Need("vllm:Renamed.go", ("x", "anything")),
    Need("vllm.parts:Made.kind"),
    Need("vllm.parts.made:made.go", ("x",)),
    Need("vllm.parts:Field", ("a",)),
    Need("vllm.parts:Field.b"),
    Need(("vllm.nowhere:run", "vllm.core:run")),
]
NOT_MET: list[tuple[Need, str]] = [
    (Need("vllm:walk"), "there is no vllm.walk"),
    (Need("vllm.nowhere:run"), "there is no vllm.nowhere.run"),
    (Need("vllm.parts:Made.stop"), "there is no vllm.parts.Made.stop"),
    (Need("vllm:run", ("a", "b", "d")), "vllm.run does not take d"),
    (Need("vllm:run", ("a",)), "vllm.run takes b as well"),
    (Need("vllm:run", ("a", "b"), replaced=True), "vllm.run takes c as well"),
    (Need("vllm.parts:Field", ("b",)), "vllm.parts.Field takes a as well"),
    (Need(("vllm:walk", "vllm:crawl")), "there is no vllm.walk"),
]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for name, text in PACKAGE.items():
        file = tmp_path / "vllm" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path / "vllm"


def test_names_and_signatures_are_read_from_sources(package: Path) -> None:
    for need in MET:
        assert find_obstacle((need,), Sources(package)) == "", need
    for need, why in NOT_MET:
        assert find_obstacle((need,), Sources(package)) == why, need


def test_they_are_the_same_live(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name == "vllm" or name.startswith("vllm.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(package.parent))
    import vllm.core
    import vllm.parts.made  # noqa: F401

    for need in MET:
        assert find_obstacle((need,), Sources()) == "", need
    for need, why in NOT_MET:
        assert find_obstacle((need,), Sources()) == why, need
    for name in [name for name in sys.modules if name == "vllm" or name.startswith("vllm.")]:
        del sys.modules[name]


def test_a_source_that_cannot_be_read_is_a_reason(package: Path) -> None:
    (package / "core.py").write_text("def run(:\n")
    assert "SyntaxError" in find_obstacle((Need("vllm.core:run"),), Sources(package))


# The vLLM at hand -----------------------------------------------------------------------------------------------------


def test_here_all_are_in_by_name_and_live() -> None:
    import vllm.model_executor.layers.quantization.mxfp4
    import vllm.model_executor.models.gpt_oss
    import vllm.parser.harmony
    import vllm.v1.structured_output.backend_xgrammar  # noqa: F401

    assert stay_out() == {}
    assert stay_out(Sources(Sources().folder)) == {}


def test_one_that_does_not_fit_stays_out_and_the_others_work(monkeypatch: pytest.MonkeyPatch) -> None:
    import vllm.parser.harmony
    from vllm.model_executor.layers.quantization.base_config import QuantizationConfig

    monkeypatch.delattr(vllm.parser.harmony, "Segment")
    for mode in ("auto", "force"):
        monkeypatch.setenv("GPTOSS_ADAPTERS_VLLM", mode)
        assert stay_out() == {"parser": "there is no vllm.parser.harmony.Segment", "tags": "needs parser"}
    monkeypatch.undo()
    monkeypatch.setattr(QuantizationConfig, "get_quant_method", lambda self, layer, prefix, rank: None)
    (found,) = stay_out().items()
    assert found[0] == "quantization" and found[1].endswith("get_quant_method takes rank as well")


def test_one_line_says_all_verdicts_in_the_first_process(
    monkeypatch: pytest.MonkeyPatch, lines: list[tuple[int, str]]
) -> None:
    import vllm

    from gptoss_adapters import vllm_plugin

    monkeypatch.setattr(vllm_plugin, "_registered", False)
    vllm_plugin.register()
    ((level, text),) = lines
    assert level == logging.INFO and f"vLLM {vllm.__version__} it has put in {', '.join(ALL)} for gpt-oss" in text
    lines.clear()
    monkeypatch.setattr(vllm_plugin, "_registered", False)
    monkeypatch.setattr(vllm, "__version__", "0.99.0rc1")
    monkeypatch.setattr(hooks, "HOOKS", (hooks.Hook("new", "", (Need("vllm:nothing"),)), hooks.METRICS))
    vllm_plugin.register()
    ((level, text),) = lines
    assert level == logging.WARNING and "0.99.0rc1, with which it was not tested," in text
    assert "put in metrics" in text and "new stays out (there is no vllm.nothing)" in text
    lines.clear()
    monkeypatch.setattr(vllm_plugin, "_registered", False)
    monkeypatch.setenv("RANK", "3")
    vllm_plugin.register()
    assert [level for level, _ in lines] == [logging.DEBUG]


# Other plugins --------------------------------------------------------------------------------------------------------


def test_another_plugin_s_model_is_left_alone(monkeypatch: pytest.MonkeyPatch, lines: list[tuple[int, str]]) -> None:
    from vllm import ModelRegistry

    monkeypatch.setattr(ModelRegistry, "models", dict(ModelRegistry.models))
    ModelRegistry.register_model("GptOssForCausalLM", "other_plugin.model:GptOss")
    (model,) = [verdict for verdict in hooks.judge() if verdict.hook.name == "model"]
    assert model.why_not == "another plugin has registered GptOssForCausalLM: other_plugin.model"
    assert hooks.install(model) == model
    assert ModelRegistry.models["GptOssForCausalLM"].module_name == "other_plugin.model"
    monkeypatch.setenv("GPTOSS_ADAPTERS_VLLM", "force")
    (model,) = [hooks.install(verdict) for verdict in hooks.judge() if verdict.hook.name == "model"]
    assert model.is_in and ModelRegistry.models["GptOssForCausalLM"].module_name.startswith("gptoss_adapters.")
    ((level, text),) = lines
    assert level == logging.WARNING and "takes over although" in text and "other_plugin.model" in text


@pytest.mark.parametrize("place", ["lazy", "loaded", "class"])
def test_another_plugin_s_parser_is_left_alone(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import vllm.parser.harmony
    from vllm.reasoning import ReasoningParserManager

    from gptoss_adapters.vllm_plugin import harmony_hooks

    theirs = type("Theirs", (vllm.parser.harmony.HarmonyParser,), {"__module__": "other_plugin.parsing"})
    for name in ("lazy_parsers", "reasoning_parsers"):
        monkeypatch.setattr(ReasoningParserManager, name, dict(getattr(ReasoningParserManager, name)))
    if place == "lazy":
        ReasoningParserManager.lazy_parsers[harmony_hooks.NAME] = ("other_plugin.parsing", "Theirs")
    elif place == "loaded":
        ReasoningParserManager.reasoning_parsers[harmony_hooks.NAME] = theirs
    else:
        monkeypatch.setattr(vllm.parser.harmony, "HarmonyParser", theirs)
    (verdict,) = [verdict for verdict in hooks.judge() if verdict.hook.name == "parser"]
    assert verdict.why_not == "another plugin parses gpt-oss: other_plugin.parsing"


def test_a_parser_that_cannot_be_imported_leaves_vllm_s_own(
    monkeypatch: pytest.MonkeyPatch, lines: list[tuple[int, str]]
) -> None:
    from vllm.parser.parser_manager import ParserManager
    from vllm.reasoning import ReasoningParserManager

    from gptoss_adapters import vllm_plugin
    from gptoss_adapters.vllm_plugin import harmony_hooks

    for name in ("lazy_parsers", "reasoning_parsers"):
        monkeypatch.setattr(ReasoningParserManager, name, dict(getattr(ReasoningParserManager, name)))
    monkeypatch.delattr(vllm_plugin, "harmony_parser", raising=False)  # an import would find it there first
    monkeypatch.delitem(sys.modules, harmony_hooks.MODULE, raising=False)
    monkeypatch.setitem(sys.modules, "gptoss_adapters.vllm_plugin.harmony_parser", None)
    monkeypatch.setenv("GPTOSS_ADAPTERS_VLLM", "force")
    harmony_hooks.install()
    assert ParserManager.get_reasoning_parser(harmony_hooks.NAME).__module__.startswith("vllm.")
    ((level, text),) = lines
    assert level == logging.WARNING and "vLLM's own parser reads gpt-oss' output: ModuleNotFoundError" in text


def test_what_vllm_caches_of_our_class_does_not_outlive_an_upgrade() -> None:
    from vllm.model_executor.models.registry import _LazyRegisteredModel

    from gptoss_adapters.vllm_plugin import registry

    versions = ("0.32.0+cpu", "0.33.0+cpu", "0.33.1.dev7+gabc")
    entries: list[Any] = [_LazyRegisteredModel(registry.MODULE, registry.name_class(name)) for name in versions]
    assert len({entry._get_cache_filename() for entry in entries}) == len(versions)
    assert len({entry.load_model_cls() for entry in entries}) == 1
