"""The tables of PEFT's keys, starts and methods against the installed PEFT, both ways."""

from __future__ import annotations

import dataclasses
import inspect
import re

import peft
from peft.tuners.lora.layer import LoraLayer

from gptoss_adapters.checkpoint.adapters.peft_keys import (
    CHANGED_BASE,
    HARMLESS,
    KINDLY_INITIALISED,
    METHODS,
    REFUSED,
    USED,
)

BEFORE_PEFT = {"invocation_string"}  # aLoRA's key in adapters that are older than PEFT's support for it


def test_every_key_of_peft_is_on_one_list() -> None:
    listed = [*USED, *HARMLESS, *REFUSED]
    assert len(listed) == len(set(listed))
    assert set(listed) - BEFORE_PEFT == {field.name for field in dataclasses.fields(peft.LoraConfig)}


def test_every_method_of_peft_has_a_name() -> None:
    assert {*METHODS, "LORA"} == {method.value for method in peft.PeftType}


def test_every_start_that_peft_compares_with_is_known() -> None:
    """The words in the code that initialises A and B: beyond the documented ones, LoRA-GA."""
    source = inspect.getsource(LoraLayer.update_layer)
    compared = re.findall(r'init_lora_weights(?:\.lower\(\))? == "(\w+)"|startswith\("(\w+)"\)', source)
    words = {a or b for a, b in compared} | {"gaussian"}  # the last one in reset_lora_parameters
    assert words == {*KINDLY_INITIALISED, *CHANGED_BASE}
    assert '"gaussian"' in inspect.getsource(LoraLayer.reset_lora_parameters)
