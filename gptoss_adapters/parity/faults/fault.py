"""A seeded fault: a real mistake of a real port, as a changed copy of the reference.

>>> SinkDrop().apply(model)(ids)  # the model itself is not touched
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from gptoss_adapters.parity.noise.variants import clone
from gptoss_adapters.reference.model import GptOss


class Fault(ABC):
    """One mistake. name: of the method sheet; part: where it sits; what: one line for a reader."""

    name: ClassVar[str]
    part: ClassVar[str]
    what: ClassVar[str]
    number: ClassVar[int] = 0  # of the method sheet; 0: not one of the 41

    def apply(self, model: GptOss) -> GptOss:
        """A changed copy; the model itself is not touched."""
        made = clone(model)
        self.change(made)
        return made

    @abstractmethod
    def change(self, model: GptOss) -> None:
        """Put the mistake into a copy made by `clone`."""

    def applies(self, model: GptOss) -> bool:
        """Whether the mistake can be made on this checkpoint at all."""
        return True

    @property
    def label(self) -> str:
        """`what`, with the particulars of this instance."""
        return self.what
