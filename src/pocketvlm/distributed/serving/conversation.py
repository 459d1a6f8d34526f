"""The body of a request → a key of how its conversation begins: the same for every turn, in any of the APIs.

A conversation is sent whole with each turn, so its beginning (system messages and the first message of the user, with
its pictures by their content) is what all turns have in common, and what a replica has kept as a prefix.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from pydantic_core import from_json

_LEADING = ("system", "developer")  # what stands before the first message of the user


def conversation_key(body: bytes) -> str:
    """A short text, the same for all turns; empty where a body says nothing of a conversation, or is no JSON.

    The model (or adapter) and `user` count. `prompt_cache_key` stands for the messages: whoever sends it wants all
    requests that have it in one place.
    """
    try:
        value = from_json(body)
    except ValueError:
        return ""
    if not isinstance(value, Mapping):
        return ""
    named = value.get("prompt_cache_key")
    beginning = [named] if isinstance(named, str) and named else _beginning(value)
    if not beginning:
        return ""
    digest = blake2b(digest_size=16)
    for part in (value.get("model"), value.get("user"), *beginning):
        _feed(digest, part)
    return digest.hexdigest()


def _beginning(body: Mapping[str, Any]) -> list[Any]:
    found: list[Any] = [body["instructions"]] if isinstance(body.get("instructions"), str) else []
    for name in ("messages", "input"):
        messages = body.get(name)
        if isinstance(messages, list) and messages:
            return [*found, *_first_of(messages)]
        if isinstance(messages, str):
            return [*found, {"role": "user", "content": _parts(messages)}]
    for name in ("system", "prompt", "images"):  # of Ollama's /api/generate, /tokenize and /v1/view_plan
        if name in body:
            found.append(body[name])
    return found


def _first_of(messages: list[Any]) -> list[Any]:
    """Messages up to the first of the user, that one included."""
    found: list[Any] = []
    for message in messages:
        if not isinstance(message, Mapping):
            return [*found, message]
        # Content in either form, and nothing that a client might add to a message once it is old.
        kept = {name: message[name] for name in ("role", "images") if name in message}
        found.append({**kept, "content": _parts(message.get("content"))})
        if message.get("role") not in _LEADING:
            return found
    return found


def _parts(content: Any) -> Any:
    if isinstance(content, str):
        return [{"text": content}]
    if isinstance(content, list):
        return [_part(one) for one in content]
    return content


def _part(part: Any) -> Any:
    """Text under one name, whatever the API calls its kind; anything else as it is."""
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return {"text": part["text"]}
    return part


def _feed(digest: Any, value: Any) -> None:
    """Add a JSON value, each piece with its kind and length, so that no two values look alike."""
    if isinstance(value, str):
        # A picture is its bytes, whatever type its URL gives it.
        text = value[value.find(",") + 1 :] if value.startswith("data:") else value
        raw = text.encode(errors="surrogatepass")
        digest.update(b"s%d:" % len(raw))
        digest.update(raw)
    elif isinstance(value, Mapping):
        digest.update(b"m%d:" % len(value))
        for name in sorted(value, key=str):
            _feed(digest, str(name))
            _feed(digest, value[name])
    elif isinstance(value, list):
        digest.update(b"l%d:" % len(value))
        for one in value:
            _feed(digest, one)
    else:
        _feed(digest, f"\0{value!r}")
