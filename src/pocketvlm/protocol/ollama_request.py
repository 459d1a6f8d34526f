"""Ollama's chat and generate: the body of a request → the same request in OpenAI's form.

Takes the JSON of POST /api/chat and /api/generate; gives what `chat_request` gives, which checks the rest. A field that
is null was not given. A field or option that would change the answer and is not honoured is refused by its name; one
that tells Ollama how to run a model (threads, GPUs, how long it stays loaded) has no effect here. Options of pictures
(`downsample_mode`, `max_slice_nums`, …) may stand among the options.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pocketvlm.errors import ConfigError, PromptError
from pocketvlm.processing.media.fetch import is_data_url
from pocketvlm.processing.picture_options import PICTURE_OPTIONS
from pocketvlm.protocol.chat_request import ChatRequest, parse_chat_completion
from pocketvlm.protocol.fields import check, given_fields, not_null, refuse_value
from pocketvlm.ranges import show_json

# Option → OpenAI's or vLLM's name for it, and its kind.
_OPTIONS = {
    **{name: (name, "number") for name in ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty")},
    "top_k": ("top_k", "integer"),
    "repeat_penalty": ("repetition_penalty", "number"),
    "stop": ("stop", "string or list of strings"),
}
# Options of how a model is run, which say nothing about its answers.
_WITHOUT_EFFECT = {
    **dict.fromkeys(("num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep"), "integer"),
    **dict.fromkeys(("numa", "low_vram", "f16_kv", "logits_all", "use_mmap", "use_mlock"), "boolean"),
    **dict.fromkeys(("mirostat_tau", "mirostat_eta"), "number"),  # of a way to sample that may only be off
}
# Options and fields that may only ask for what happens anyway.
_NEUTRAL_OPTIONS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("tfs_z", "typical_p"), (1,)),
    "mirostat": (0,),
    "penalize_newline": (True,),
    **dict.fromkeys(("vocab_only", "embedding_only"), (False,)),
}
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("suffix", "template"), ("",)),
    "context": ([],),
    **dict.fromkeys(("raw", "truncate", "shift"), (False,)),  # a prompt that is too long is refused, not cut
}
_COMMON = ("model", "stream", "format", "options", "keep_alive", "think", "logprobs", "top_logprobs")
FIELDS = {
    "chat": (*_COMMON, "truncate", "shift", "messages", "tools"),
    "generate": (*_COMMON, *_NEUTRAL, "prompt", "system", "images"),
}
_MESSAGE = ("role", "content", "thinking", "images", "tool_calls", "tool_name", "tool_call_id")
_DURATION = re.compile(r"[+-]?(\d+(\.\d*)?(ns|us|µs|ms|s|m|h)?)+")
_OTHER_SOURCE = re.compile(r"[a-z]+://|[/~.]|[a-z]:\\", re.IGNORECASE)  # "/9j/" begins every JPEG: see `_image`


@dataclass(frozen=True, slots=True)
class OllamaRequest:
    """What a body asks for.

    Attributes:
        model: the name it gives.
        chat: messages and options; None asks only that the model be loaded, or unloaded.
        stream: the answer should come piece by piece.
        num_ctx: most tokens of prompt and answer together; the model's own limit where None.
        unloads: the model should not stay loaded.
    """

    model: str
    chat: ChatRequest | None
    stream: bool = True
    num_ctx: int | None = None
    unloads: bool = False


def parse_ollama(kind: str, body: Any) -> OllamaRequest:
    """Check a body of POST /api/`kind` ("chat" or "generate") and translate it.

    Raises:
        ConfigError: a field that is missing, unknown, of another type, or cannot be honoured; the message names it.
        PromptError: messages, images or tools that no prompt can be made with.
        MissingExtraError: what structured outputs need is not installed.
    """
    given = given_fields(body, FIELDS[kind])
    _check_neutral("", given, _NEUTRAL)
    if not check("model", given.get("model", ""), "string"):
        raise ConfigError("the field 'model' is missing", hint="GET /api/tags lists the models.")
    messages = _chat_messages(given) if kind == "chat" else _generate_messages(given)
    options, num_ctx = _options(given)
    asked: dict[str, Any] = {**options, **_format(given), **_think(given)}
    asked |= {name: given[name] for name in ("tools", "logprobs", "top_logprobs") if name in given}
    unloads = _unloads(given.get("keep_alive", "5m"))
    return OllamaRequest(
        model=given["model"],
        chat=parse_chat_completion({**asked, "messages": messages}) if messages else None,
        stream=check("stream", given.get("stream", True), "boolean"),
        num_ctx=num_ctx,
        unloads=unloads,
    )


def _check_neutral(prefix: str, given: Mapping[str, Any], allowed: Mapping[str, tuple[Any, ...]]) -> None:
    for name in given.keys() & allowed.keys():
        value, values = given[name], allowed[name]
        # True is no number here, though Python has it equal 1.
        if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in values):
            refuse_value(f"{prefix}{name}", value, *values)


def _options(given: Mapping[str, Any]) -> tuple[dict[str, Any], int | None]:
    """Options in OpenAI's form, and the limit of the context."""
    options = not_null("options", given.get("options", {}))
    known = {*_OPTIONS, *_WITHOUT_EFFECT, *_NEUTRAL_OPTIONS, *PICTURE_OPTIONS}
    for name in options:
        if name not in {*known, "seed", "num_predict", "num_ctx", "repeat_last_n"}:
            raise ConfigError(f"options: {show_json(name)} is not supported", hint="Leave it out.")
    for name in options.keys() & _WITHOUT_EFFECT.keys():
        check(f"options.{name}", options[name], _WITHOUT_EFFECT[name])
    _check_neutral("options.", options, _NEUTRAL_OPTIONS)
    result: dict[str, Any] = {
        theirs: check(f"options.{name}", options[name], kind)
        for name, (theirs, kind) in _OPTIONS.items()
        if name in options
    }
    if (seed := _integer(options, "seed", -1)) != -1:  # Ollama draws one then
        result["seed"] = seed
    if (most := _integer(options, "num_predict", -1)) < -2:
        raise ConfigError(f"options.num_predict={most} is neither a number of tokens nor -1 or -2, which set no limit")
    if most > 0:
        result["max_tokens"] = most
    num_ctx = _integer(options, "num_ctx", 0)
    if "num_ctx" in options and num_ctx < 1:
        raise ConfigError(f"options.num_ctx={num_ctx} is not a positive number of tokens")
    neutral = {"repeat_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0}
    penalises = any(options.get(name, value) != value for name, value in neutral.items())
    if _integer(options, "repeat_last_n", -1) != -1 and penalises:
        refuse_value("options.repeat_last_n", options["repeat_last_n"], -1)  # penalties look at all that was said
    if pictures := {name: options[name] for name in options if name in PICTURE_OPTIONS}:
        result["mm_processor_kwargs"] = pictures
    return result, num_ctx or None


def _integer(options: Mapping[str, Any], name: str, default: int) -> int:
    value: int = check(f"options.{name}", options.get(name, default), "integer")
    return value


def _format(given: Mapping[str, Any]) -> dict[str, Any]:
    wanted = given.get("format", "")
    if wanted == "":
        return {}
    if given.get("tools"):
        raise ConfigError("tools and format were both given", hint="Give one of them.")
    if wanted == "json":
        return {"response_format": {"type": "json_object"}}
    if not isinstance(wanted, Mapping):
        raise ConfigError(f"format is {show_json(wanted)}, expected 'json' or a JSON schema")
    return {"structured_outputs": {"json": wanted}}


def _think(given: Mapping[str, Any]) -> dict[str, Any]:
    if "think" not in given:
        return {}
    if not isinstance(given["think"], bool):
        raise ConfigError(
            f"think is {show_json(given['think'])}, expected true or false", hint="There are no levels of thinking."
        )
    return {"chat_template_kwargs": {"enable_thinking": given["think"]}}


def _unloads(keep_alive: Any) -> bool:
    """Whether `keep_alive`, seconds or a duration such as "5m", is zero."""
    if isinstance(keep_alive, str) and _DURATION.fullmatch(keep_alive[:40]) and len(keep_alive) <= 40:
        return not re.search("[1-9]", keep_alive)
    return bool(check("keep_alive", keep_alive, "number") == 0)


def _generate_messages(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    prompt, system = (check(name, given.get(name, ""), "string") for name in ("prompt", "system"))
    content = _content(prompt, given.get("images", ()), "")
    if not content:
        return []
    return [*([{"role": "system", "content": system}] if system else ()), {"role": "user", "content": content}]


def _chat_messages(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    messages = check("messages", given.get("messages", []), "list")
    calls = list[tuple[str, str]]()  # (id, name) of those that have no answer yet
    return [_message(message, f"messages[{index}]", calls) for index, message in enumerate(messages)]


def _message(message: Any, where: str, calls: list[tuple[str, str]]) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise PromptError(f"{where} is {show_json(message)}, expected an object with role and content")
    given = {name: value for name, value in message.items() if value is not None}
    for name in given:
        if name not in _MESSAGE:
            raise PromptError(f"{where} has the field {show_json(name)}, which is not supported", hint="Leave it out.")
    result: dict[str, Any] = {"role": given.get("role")}
    content = check(f"{where}.content", given.get("content", ""), "string")
    result["content"] = _content(content, given.get("images", ()), f"{where}.")
    if given.get("thinking"):
        result["reasoning_content"] = check(f"{where}.thinking", given["thinking"], "string")
    if given.get("tool_calls"):
        result["tool_calls"] = [
            _call(call, f"{where}.tool_calls[{number}]", f"{where}-{number}")
            for number, call in enumerate(check(f"{where}.tool_calls", given["tool_calls"], "list"))
        ]
        calls[:] = [(call["id"], call["function"].get("name")) for call in result["tool_calls"]]
    if given.get("role") == "tool":
        result |= _answered(given, where, calls)
    elif other := [name for name in ("tool_name", "tool_call_id") if given.get(name)]:
        raise PromptError(f"{where}: only a message of role tool has {other[0]}")
    return result


def _call(call: Any, where: str, id: str) -> dict[str, Any]:
    """A call of an earlier answer, with an id: Ollama's calls need none."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise PromptError(f"{where}: expected an object with a function")
    id = check(f"{where}.id", call.get("id") or id, "string")
    return {"id": id, "type": "function", "function": {k: v for k, v in function.items() if k in ("name", "arguments")}}


def _answered(given: Mapping[str, Any], where: str, calls: list[tuple[str, str]]) -> dict[str, Any]:
    """Which call a tool's message answers: by id, else the first open one of that name; else they stay in order."""
    name = check(f"{where}.tool_name", given.get("tool_name", ""), "string")
    id = check(f"{where}.tool_call_id", given.get("tool_call_id", ""), "string")
    id = id or next((call for call, called in calls if called == name), "")
    calls[:] = [call for call in calls if call[0] != id]
    return {**({"name": name} if name else {}), **({"tool_call_id": id} if id else {})}


def _content(text: str, images: Any, where: str) -> Any:
    """Images first, as Ollama has them, then the text."""
    parts = [_image(image, f"{where}images[{number}]") for number, image in enumerate(_images(images, where))]
    if not parts:
        return text
    return [*parts, *([{"type": "text", "text": text}] if text else ())]


def _images(images: Any, where: str) -> Iterable[Any]:
    found: Iterable[Any] = check(f"{where}images", images, "list")
    return found


def _image(image: Any, where: str) -> dict[str, Any]:
    """A picture in base64, with or without `data:` in front; whether it is one is for those who read it to say."""
    if not isinstance(image, str) or not image:
        raise PromptError(f"{where} is {show_json(image)}, expected a picture in base64")
    if _OTHER_SOURCE.match(image) and not image.startswith("/9j/"):
        raise PromptError(f"{where} is {show_json(image)}, expected a picture in base64", hint="Send its content.")
    return {"type": "image_url", "image_url": {"url": image if is_data_url(image) else f"data:;base64,{image}"}}
