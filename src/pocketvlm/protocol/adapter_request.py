"""vLLM's bodies of /v1/load_lora_adapter and /v1/unload_lora_adapter: the name of an adapter, and its folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pocketvlm.errors import ConfigError
from pocketvlm.protocol.fields import check, given_fields

# Kinds of the fields. vLLM numbers its adapters; here a name is enough, and the number changes nothing there either.
LOAD_FIELDS = {"lora_name": "string", "lora_path": "string"}
UNLOAD_FIELDS = {"lora_name": "string", "lora_int_id": "integer"}


def parse_load_adapter(body: Any) -> tuple[str, str]:
    """(name, path of the folder) of a body.

    Raises:
        ConfigError: it is no such body.
    """
    given = _checked(body, LOAD_FIELDS, ("lora_name", "lora_path"))
    return given["lora_name"], given["lora_path"]


def parse_unload_adapter(body: Any) -> str:
    """The name that a body gives.

    Raises:
        ConfigError: it is no such body.
    """
    name: str = _checked(body, UNLOAD_FIELDS, ("lora_name",))["lora_name"]
    return name


def _checked(body: Any, kinds: Mapping[str, str], required: tuple[str, ...]) -> dict[str, Any]:
    given = given_fields(body, kinds)
    for name, value in given.items():
        check(name, value, kinds[name])
    for name in required:
        if not given.get(name):
            raise ConfigError(f"the field {name!r} is missing", hint="Give a text that is not empty.")
    return given
