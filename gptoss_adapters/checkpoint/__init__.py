"""Any gpt-oss checkpoint as one thing: `open_checkpoint(path)` gives a `Checkpoint` with canonical tensors.

Canonical names are those of `table.TABLE`; shapes are [.., out, in], with gate and up as interleaved rows.
"""

from gptoss_adapters.checkpoint.checkpoint import Checkpoint, TensorInfo
from gptoss_adapters.checkpoint.files import Source
from gptoss_adapters.checkpoint.opening import open_checkpoint

__all__ = ["Checkpoint", "Source", "TensorInfo", "open_checkpoint"]
