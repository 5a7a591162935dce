"""instructor: the schema, in the modes that hold the answer's form on the server."""

from __future__ import annotations

from typing import Any

import instructor
from drivers.tools import KEY, MODEL
from openai import OpenAI
from pydantic import BaseModel


class Person(BaseModel):
    name: str
    age: int


def clients(url: str) -> dict[str, Any]:
    plain = OpenAI(base_url=url, api_key=KEY, max_retries=0)
    modes = {"json schema": instructor.Mode.JSON_SCHEMA, "json": instructor.Mode.JSON}
    return {
        f"instructor {name}": lambda flow, stream, mode=mode: ask(
            instructor.from_openai(plain, mode=mode), flow, stream
        )
        for name, mode in modes.items()
    }


def ask(client: Any, flow: dict[str, Any], stream: bool) -> dict[str, Any]:
    options = {
        "model": flow.get("model", MODEL),
        "messages": [{"role": "user", "content": flow["asks"][0]}],
        "response_model": Person,
        "temperature": flow.get("temperature", 0),
        "max_retries": 0,
    }
    if stream:
        person = list(client.chat.completions.create_partial(**options))[-1]
    else:
        person = client.chat.completions.create(**options)
    return {"data": person.model_dump(), "calls": []}
