"""The public names of oss-harmony 0.0.11, the fork that vLLM installs under the name of openai_harmony.

It renders recipients on commentary in the channel's section and puts ``<|constrain|>`` before every content type, see
`gptoss_harmony.rendering.pieces.Form`. All else is as in `compat.openai_harmony`. Not followed: the fork's parser cuts
repeated channel markers out of recipients, and its schemas say ``1e+20`` where 0.0.8 says ``1e20``.
"""

from __future__ import annotations

from gptoss_harmony.compat import openai_harmony
from gptoss_harmony.compat.openai_harmony import *  # noqa: F403 - the same names
from gptoss_harmony.compat.openai_harmony import HarmonyEncodingName
from gptoss_harmony.rendering.pieces import Form
from gptoss_harmony.vocabulary import load_vocabulary

__all__ = openai_harmony.__all__


class HarmonyEncoding(openai_harmony.HarmonyEncoding):  # type: ignore[no-redef]
    """Renders, parses, encodes and decodes."""

    _form: Form = "channel"


def load_harmony_encoding(name: str | HarmonyEncodingName) -> HarmonyEncoding:  # type: ignore[no-redef]
    """The encoding ``"HarmonyGptOss"``; any other name is a ValueError. The vocabulary is loaded once per process."""
    openai_harmony.load_harmony_encoding(name)
    return HarmonyEncoding(load_vocabulary())
