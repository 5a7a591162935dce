"""Compares what the loaded model's expert layers compute with the reference, on a fixed input, straight from the files.

Kernels that silently compute garbage have happened on several GPUs, and a weight can be damaged between disk and
device. The check runs once, when the weights are loaded and before anything is served, through vLLM's own expert layer
in a forward context of its own: whatever kernel serves is what is judged. On GPUs it runs unless it is switched off.

With tensor and expert parallel all ranks take part, and agree before they start: what one of them cannot do none does.
With data parallel it is left out: the ranks' loads are not in step, and their experts wait for each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.config import VllmConfig

from gptoss_adapters import spellings
from gptoss_adapters.checkpoint import Checkpoint
from gptoss_adapters.checkpoint.files import U8
from gptoss_adapters.errors import CheckFailed
from gptoss_adapters.reference.experts import PARTS, ExpertLayer, OracleExperts, ReadWeight, decode, load_experts
from gptoss_adapters.reference.linear import as_tensor
from gptoss_adapters.reference.model import DEFINITION
from gptoss_adapters.vllm_plugin import log, metrics, policy
from gptoss_adapters.vllm_plugin.decision import open_served
from gptoss_adapters.vllm_plugin.quantised import ReadPacked

# Relative L2: several times what rounding gives.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
TOLERANCE_8_BITS = 0.15  # of kernels that round the activations of both products to e4m3: 0.04 by arithmetic
TOLERANCE_4_BITS = 0.5  # to e2m1: 0.15 by arithmetic; garbage is above 1
OURS = ("gpt_oss_mxfp4", "mxfp4", "gptoss_dense")  # quantisations under which the experts are what the files say


@dataclass(frozen=True)
class Extent:
    """How much is checked: of each rank's layers the first ones, and tokens, each of which chooses other experts."""

    layers: int
    tokens: int


ASKED = Extent(2, 8)
UNASKED = Extent(1, 2)  # what every start on a GPU pays: well under a second


def schedule(model: Any, vllm_config: VllmConfig) -> None:
    """Has `model` checked when vLLM's loaders have finished with it: the last thing that they do is `model.eval()`."""
    if not policy.selfcheck() and (policy.selfcheck_is_off() or policy.on_cpu()):
        return

    def finish() -> Any:
        del model.__dict__["eval"]
        check(model, vllm_config, ASKED if policy.selfcheck() else UNASKED)
        return model.eval()

    object.__setattr__(model, "eval", finish)


def check(model: Any, vllm_config: VllmConfig, extent: Extent = ASKED) -> bool | None:
    """Whether the checked layers equal the reference; None: it could not be told. Logs one line, an error for layers
    that are off. Raises CheckFailed only with GPTOSS_ADAPTERS_SELFCHECK=require, for anything but True.
    """
    passed = None
    if hindrance := find_hindrance(vllm_config):
        say = log.warning if policy.selfcheck() else log.info
        say("gptoss-adapters self-check left out: %s", hindrance)
    else:
        passed = _Check(model, vllm_config, extent).run()
    if passed is not None:
        metrics.record_selfcheck(passed)
    if passed is not True and policy.selfcheck_required():
        raise CheckFailed("GPTOSS_ADAPTERS_SELFCHECK=require: the self-check did not pass", hint="the log says why")
    return passed


def find_hindrance(vllm_config: VllmConfig) -> str:
    """Why the check cannot run under this config, the same on all ranks, or ""."""
    parallel, quantisation = vllm_config.parallel_config, vllm_config.quant_config
    if parallel.data_parallel_size > 1:
        return f"it does not run with data parallel ({parallel.data_parallel_size} ranks)"
    if parallel.enable_eplb:
        return "it does not run with a load balancer for experts (--enable-eplb)"
    if vllm_config.load_config.load_format == "dummy":
        return "the weights are not the checkpoint's (--load-format dummy)"
    if quantisation is not None and quantisation.get_name() not in OURS:
        return f"quantization {quantisation.get_name()} changes the experts"
    return ""


class _Check:
    """One rank's part. Ranks talk twice: before the layers compute (they all-reduce), and about the verdict."""

    def __init__(self, model: Any, vllm_config: VllmConfig, extent: Extent) -> None:
        from vllm.distributed import get_tp_group

        self.model = model
        self.vllm_config = vllm_config
        self.extent = extent
        self.group = get_tp_group()
        self.layers = range(
            model.model.start_layer, min(model.model.start_layer + extent.layers, model.model.end_layer)
        )
        self.expected: list[Tensor] = []  # on the group's first rank

    def run(self) -> bool | None:
        ready = self.prepare()
        if not self.all_say(ready):
            return None
        try:
            distances = [self.measure(n) for n in self.layers]
        except Exception as error:  # the check must not take the server down
            log.warning("gptoss-adapters self-check could not run: %s: %s", type(error).__name__, error)
            distances = None
        passed = self.judge(distances) if distances is not None else False
        agreed = self.all_say(passed)
        return agreed if self.all_say(distances is not None) else None

    def prepare(self) -> bool:
        """Everything that may fail for want of files or memory: the inputs, and what the reference makes of them."""
        try:
            self.inputs = [self.make_input(n) for n in self.layers]
            if torch.device(self.inputs[0][0].device).type == "cpu":
                torch.cpu._init_amx()  # vLLM's kernels use its tiles and never ask
            if self.group.rank_in_group == 0:
                checkpoint = self.find_checkpoint()
                self.expected = [
                    self.compute_expected(checkpoint, n, *i) for n, i in zip(self.layers, self.inputs, strict=True)
                ]
        except Exception as error:
            log.warning("gptoss-adapters self-check could not run: %s: %s", type(error).__name__, error)
            return False
        return True

    def find_checkpoint(self) -> Checkpoint:
        found = self.model.__dict__.get("checkpoint") or open_served(self.vllm_config)
        if found is None:
            raise FileNotFoundError("the checkpoint's files are not at hand")
        return found.with_config(spellings.from_hf(self.model.config.to_dict()))  # what is served: --hf-overrides count

    def make_input(self, n: int) -> tuple[Tensor, Tensor]:
        """x [T, H] and router scores [T, E]: seeded, and spread over all experts and so over all ranks."""
        config = self.model.config
        norm = self.model.model.layers[n].post_attention_layernorm.weight
        experts, top_k, tokens = config.num_local_experts, config.num_experts_per_tok, self.extent.tokens
        x = torch.randn(tokens, config.hidden_size, generator=torch.Generator().manual_seed(n))
        scores = torch.randn(tokens, experts, generator=torch.Generator().manual_seed(1000 + n))
        turn = torch.arange(tokens * top_k).reshape(tokens, top_k)
        chosen = turn % experts if tokens * top_k >= experts else turn * experts // (tokens * top_k)
        scores.scatter_add_(1, chosen, torch.full(chosen.shape, 10.0))
        return x.to(norm), scores.to(norm)

    def compute_expected(self, checkpoint: Checkpoint, n: int, x: Tensor, scores: Tensor) -> Tensor:
        top, chosen = scores.float().cpu().topk(self.model.config.num_experts_per_tok, dim=-1)
        return self.read_experts(checkpoint, n)(x.float().cpu(), chosen, top.softmax(-1))

    def read_experts(self, checkpoint: Checkpoint, n: int) -> ExpertLayer:
        """The definition, in float32. On a GPU our kernels may stand in for it: there they judge others' work."""
        cpu = torch.device("cpu")
        read_packed: ReadPacked | None = self.model.__dict__.get("read_packed")
        if read_packed is None:
            mode = "oracle" if policy.on_cpu() else "auto"
            return load_experts(checkpoint, n, torch.float32, cpu, mode, DEFINITION)
        name = f"layers.{n}.experts"
        arrays = {part: read_packed(f"{name}.{part}.weight") for part in PARTS}
        weights: dict[str, ReadWeight] = {part: _read_from(*arrays[part]) for part in PARTS}
        biases = {part: as_tensor(checkpoint.array(f"{name}.{part}.bias")) for part in PARTS}
        return OracleExperts(checkpoint.config, torch.float32, weights, biases, DEFINITION)

    def measure(self, n: int) -> float:
        """|theirs - ours| / |ours| of one layer; 0 on the ranks that have no reference."""
        from vllm.forward_context import set_forward_context

        x, scores = self.inputs[n - self.layers[0]]
        with torch.inference_mode(), set_forward_context(None, self.vllm_config, num_tokens=len(x)):
            theirs = self.model.model.layers[n].mlp.experts(hidden_states=x.clone(), router_logits=scores.clone())
        if not self.expected:
            return 0.0
        ours = self.expected[n - self.layers[0]]
        return float((theirs[:, : ours.shape[1]].float().cpu() - ours).norm() / ours.norm())

    def judge(self, distances: list[float]) -> bool:
        bad = [n for n, distance in zip(self.layers, distances, strict=True) if not distance <= self.find_tolerance(n)]
        if self.expected:
            shown = ", ".join(f"layer {n} {distance:.1e}" for n, distance in zip(self.layers, distances, strict=True))
            if bad:
                log.error(
                    "gptoss-adapters self-check FAILED: expert layers differ from the reference (relative L2: %s); "
                    "do not trust this server's output",
                    shown,
                )
            else:
                log.info(
                    "gptoss-adapters self-check passed: expert layers equal the reference (relative L2: %s)", shown
                )
        return not bad

    def find_tolerance(self, n: int) -> float:
        experts = self.model.model.layers[n].mlp.experts.routed_experts
        backend = getattr(getattr(experts.quant_method, "mxfp4_backend", None), "name", "")
        if backend.endswith("MXFP4_MXFP4") or backend.startswith("FLASHINFER_MOE_EP"):
            return TOLERANCE_4_BITS
        if backend.endswith("FP8") or backend.startswith("DEEPGEMM"):
            return TOLERANCE_8_BITS
        return TOLERANCE[self.inputs[0][0].dtype]

    def all_say(self, yes: bool) -> bool:
        """Whether all ranks that share these layers do."""
        if self.group.world_size == 1:
            return yes
        said = torch.tensor([int(yes)])
        torch.distributed.all_reduce(said, torch.distributed.ReduceOp.MIN, group=self.group.cpu_group)
        return bool(said.item())


def _read_from(blocks: U8, scales: U8) -> ReadWeight:
    packed = as_tensor(blocks), as_tensor(scales)
    return lambda expert, dtype: decode(packed[0][expert], packed[1][expert], dtype)
