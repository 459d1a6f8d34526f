"""The description of the API (OpenAPI 3.1), made of the tables that read its bodies: it names no other field.

What stands in the bodies of vLLM and OpenAI is described there: here are names and kinds of fields, and all answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pocketvlm
from pocketvlm.api.adapters import MAX_NAME
from pocketvlm.config import DOWNSAMPLE_OPTIONS
from pocketvlm.engine.sampling.params import BIAS, MAX_LOGPROBS, MAX_STOP_LENGTH, MAX_STOP_STRINGS, RANGES
from pocketvlm.processing.picture_options import PICTURE_OPTIONS
from pocketvlm.processing.prompt.messages import ROLES
from pocketvlm.protocol.adapter_request import LOAD_FIELDS, UNLOAD_FIELDS
from pocketvlm.protocol.chat_request import FIELDS, OPTIONS, WITHOUT_EFFECT
from pocketvlm.protocol.fields import MAX_INTEGER, MIN_INTEGER
from pocketvlm.protocol.page_previews import PAGES_FIELDS, PREVIEW_SIDE
from pocketvlm.protocol.responses_request import RESPONSE_FIELDS, RESPONSE_OPTIONS, WITHOUT_EFFECT_HERE
from pocketvlm.protocol.tokenize_request import DETOKENIZE_FIELDS, TOKENIZE_FIELDS
from pocketvlm.protocol.view_plan import VIEW_PLAN_FIELDS, VIEW_PLAN_OPTIONS
from pocketvlm.ranges import Range

Schema = dict[str, Any]
Table = Mapping[str, Any]  # field → its kind, or kind and values that it may have
_STRING: Schema = {"type": "string"}
_PLAIN: Schema = {"type": "string", "description": "What was done, in words"}  # an answer that is no JSON
_OBJECT: Schema = {"type": "object"}
_INTEGER: Schema = {"type": "integer", "minimum": MIN_INTEGER, "maximum": MAX_INTEGER}
# The kinds of `protocol.fields`.
KINDS: dict[str, Schema] = {
    "string": _STRING,
    "number": {"type": "number"},
    "integer": _INTEGER,
    "boolean": {"type": "boolean"},
    "object": _OBJECT,
    "object of strings": {"type": "object", "additionalProperties": _STRING},
    "list": {"type": "array"},
    "list of strings": {"type": "array", "items": _STRING},
    "list of integers": {"type": "array", "items": _INTEGER},
    "string or list of strings": {"anyOf": [_STRING, {"type": "array", "items": _STRING}]},
}


def _closed(properties: Mapping[str, Schema], required: tuple[str, ...] = ()) -> Schema:
    """An object without other fields; null stands for a field that is not given."""
    nullable = {name: s if name in required else {"anyOf": [s, {"type": "null"}]} for name, s in properties.items()}
    return {
        "type": "object",
        "properties": nullable,
        "required": list(required),
        "additionalProperties": False,
    }


def _in_range(allowed: Range) -> Schema:
    """A number as its table has it; `Range` writes an integer without an upper bound as one of 64 bits."""
    lowest = "exclusiveMinimum" if allowed.is_open else "minimum"
    kind = {int: "integer", float: "number"}[allowed.kind]
    return {"type": kind, lowest: allowed.min, "maximum": allowed.max}


def _of_kind(kind: str, allowed: tuple[Any, ...] = ()) -> Schema:
    return {"enum": list(allowed)} if allowed else KINDS[kind]


_TEXT_PART = _closed({"type": {"const": "text"}, "text": _STRING}, ("type", "text"))
_DETAIL: Schema = {"enum": ["low", "high", "auto"]}
_URL = _closed({"url": _STRING, "detail": _DETAIL}, ("url",))
_FILE = _closed({"file_data": _STRING, "filename": _STRING}, ("file_data",))
_MEDIA_PARTS = [
    *(_closed({"type": {"const": k}, k: _URL}, ("type", k)) for k in ("image_url", "video_url")),
    _closed({"type": {"const": "file"}, "file": _FILE, "detail": _DETAIL}, ("type", "file")),
]
_TEXT: Schema = {"anyOf": [_STRING, {"type": "array", "items": _TEXT_PART, "minItems": 1}]}
_CONTENT: Schema = {
    "anyOf": [_STRING, {"type": "array", "items": {"anyOf": [_TEXT_PART, *_MEDIA_PARTS]}, "minItems": 1}]
}
_CALL = _closed(
    {"id": _STRING, "type": {"const": "function"}, "function": _closed({"name": _STRING, "arguments": _STRING})},
    ("function",),
)
_ROLES: dict[str, dict[str, Schema]] = {
    "system": {"content": _TEXT},
    "developer": {"content": _TEXT},
    "user": {"content": _CONTENT},
    "assistant": {"content": _STRING, "reasoning_content": _STRING, "tool_calls": {"type": "array", "items": _CALL}},
    "tool": {"content": _CONTENT, "tool_call_id": _STRING},
}
_MESSAGE: Schema = {
    "anyOf": [
        _closed({"role": {"const": role}, **_ROLES[role]}, ("role", *(("content",) if role != "assistant" else ())))
        for role in ROLES
    ]
}
_FUNCTION = {"name": _STRING, "description": _STRING, "parameters": _OBJECT, "strict": {"type": "boolean"}}
_TOOL = _closed({"type": {"const": "function"}, "function": _closed(_FUNCTION, ("name",))}, ("type", "function"))
_FLAT_TOOL = _closed({"type": {"const": "function"}, **_FUNCTION}, ("type", "name"))
_COUNT = _in_range(RANGES["max_tokens"])
_MODES: Schema = {"enum": ["auto", "none", "required"]}
_STRUCTURES: dict[str, Schema] = {
    "json": {},
    "regex": _STRING,
    "choice": KINDS["list of strings"],
    "grammar": _STRING,
    "disable_any_whitespace": {"type": "boolean"},
}
_SCHEMA_FORMAT = {"name": _STRING, "description": _STRING, "schema": _OBJECT, "strict": {"type": "boolean"}}
_PLAIN_FORMATS = [_closed({"type": {"const": kind}}, ("type",)) for kind in ("text", "json_object")]
_TOP_LOGPROBS: Schema = {"type": "integer", "minimum": 0, "maximum": MAX_LOGPROBS}
_EFFORT: Schema = {"enum": ["none"]}
_STOP: Schema = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_LENGTH}
# Options with a range of their own.
_RANGED: dict[str, Schema] = {
    **{name: _in_range(allowed) for name, allowed in RANGES.items() if name in OPTIONS and allowed.kind is not bool},
    "stop": {"anyOf": [_STOP, {"type": "array", "items": _STOP, "maxItems": MAX_STOP_STRINGS}]},
}
_SHARED: dict[str, Schema] = {
    "stream": {"type": "boolean"},
    "parallel_tool_calls": {"type": "boolean"},
    "top_logprobs": _TOP_LOGPROBS,
    "chat_template_kwargs": _closed({"enable_thinking": {"type": "boolean"}}),
    "mm_processor_kwargs": _closed({name: KINDS[kind] for name, kind in PICTURE_OPTIONS.items()}),
}
_CHAT: dict[str, Schema] = {
    "messages": {"type": "array", "items": _MESSAGE, "minItems": 1},
    "max_tokens": _COUNT,
    "max_completion_tokens": _COUNT,
    "logprobs": {"type": "boolean"},
    "logit_bias": {"type": "object", "additionalProperties": _in_range(BIAS)},
    "response_format": {
        "anyOf": [
            *_PLAIN_FORMATS,
            _closed(
                {"type": {"const": "json_schema"}, "json_schema": _closed(_SCHEMA_FORMAT, ("schema",))},
                ("type", "json_schema"),
            ),
        ]
    },
    "structured_outputs": _closed(_STRUCTURES),
    "tools": {"type": "array", "items": _TOOL},
    "tool_choice": {
        "anyOf": [
            _MODES,
            _closed(
                {"type": {"const": "function"}, "function": _closed({"name": _STRING}, ("name",))}, ("type", "function")
            ),
        ]
    },
    "stream_options": _closed({"include_usage": {"type": "boolean"}, "include_obfuscation": {"type": "boolean"}}),
    "reasoning_effort": _EFFORT,
}
_INPUT_PARTS = [
    _closed({"type": {"const": "input_text"}, "text": _STRING}, ("type", "text")),
    _closed(
        {"type": {"const": "input_image"}, "image_url": _STRING, "detail": _DETAIL},
        ("type", "image_url"),
    ),
    *(
        _closed({"type": {"const": "input_file"}, way: _STRING, "filename": _STRING, "detail": _DETAIL}, ("type", way))
        for way in ("file_data", "file_url")
    ),
]
_INPUT_CONTENT: Schema = {"anyOf": [_STRING, {"type": "array", "items": {"anyOf": _INPUT_PARTS}, "minItems": 1}]}
_ITEMS = [
    _closed(
        {
            "type": {"const": "message"},
            "role": {"enum": ["user", "assistant", "system", "developer"]},
            "content": _INPUT_CONTENT,
        },
        ("role", "content"),
    ),
    _closed(
        {"type": {"const": "function_call"}, "call_id": _STRING, "name": _STRING, "arguments": _STRING},
        ("type", "call_id", "name", "arguments"),
    ),
    _closed(
        {"type": {"const": "function_call_output"}, "call_id": _STRING, "output": _INPUT_CONTENT},
        ("type", "call_id", "output"),
    ),
    _closed(
        {
            "type": {"const": "reasoning"},
            "summary": {"type": "array", "items": _closed({"type": _STRING, "text": _STRING}, ("text",))},
            "content": {"type": "array", "items": _closed({"type": _STRING, "text": _STRING}, ("text",))},
        },
        ("type",),
    ),
]
_RESPONSES: dict[str, Schema] = {
    "input": {"anyOf": [_STRING, {"type": "array", "items": {"anyOf": _ITEMS}, "minItems": 1}]},
    "instructions": _STRING,
    "max_output_tokens": _COUNT,
    "include": KINDS["list of strings"],
    "text": _closed(
        {
            "format": {
                "anyOf": [
                    *_PLAIN_FORMATS,
                    _closed({"type": {"const": "json_schema"}, **_SCHEMA_FORMAT}, ("type", "schema")),
                ]
            },
            "verbosity": {"enum": ["medium"]},
        }
    ),
    "tools": {"type": "array", "items": _FLAT_TOOL},
    "tool_choice": {"anyOf": [_MODES, _closed({"type": {"const": "function"}, "name": _STRING}, ("type", "name"))]},
    "reasoning": _closed({"effort": _EFFORT, "summary": {"enum": ["auto"]}, "generate_summary": {"enum": ["auto"]}}),
    "stream_options": _closed({"include_obfuscation": {"type": "boolean"}}),
}
_TOKENIZE: dict[str, Schema] = {
    **{name: _CHAT[name] for name in ("messages", "tools", "tool_choice")},
    "prompt": _STRING,
    "add_special_tokens": {"type": "boolean"},
    "return_token_strs": {"type": "boolean"},
    "add_generation_prompt": {"enum": [True]},
    "continue_final_message": {"enum": [False]},
}
_VIEW_PLAN: dict[str, Schema] = {
    "images": {"type": "array", "items": _STRING, "minItems": 1},
    "downsample_modes": {"type": "array", "items": {"enum": list(DOWNSAMPLE_OPTIONS)}, "minItems": 1},
    "mm_processor_kwargs": _closed({name: KINDS[kind] for name, kind in VIEW_PLAN_OPTIONS.items()}),
}
_PAGES: dict[str, Schema] = {
    "document": {"type": "string", "minLength": 1},
    "preview_side": _in_range(PREVIEW_SIDE),
}
_NAME: Schema = {"type": "string", "minLength": 1, "maxLength": MAX_NAME}
_ADAPTER: dict[str, Schema] = {"lora_name": _NAME, "lora_path": {"type": "string", "minLength": 1}}
_DETOKENIZE: dict[str, Schema] = {"tokens": {"type": "array", "items": {"type": "integer", "minimum": 0}}}


def _body(
    model: Schema, fields: Iterable[str], own: Mapping[str, Schema], required: tuple[str, ...], *tables: Table
) -> Schema:
    """The schema of a body of these fields, each of which has its schema in one of the tables."""
    known: dict[str, Schema] = {**_SHARED, "model": model}
    for table in tables:
        known.update((name, _of_kind(*row) if isinstance(row, tuple) else KINDS[row]) for name, row in table.items())
    known.update({**_RANGED, **own})
    return _closed({name: known[name] for name in sorted(fields)}, required)


_ERROR: Schema = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {"message": _STRING, "type": _STRING, "param": {}, "code": {"type": ["string", "null"]}},
            "required": ["message", "type", "code"],
        }
    },
    "required": ["error"],
}


def _object_of(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


_TOKENS = {"count": {"type": "integer"}, "tokens": {"type": "array"}, "max_model_len": {"type": "integer"}}
_DEFAULTS = {name: {"type": "integer"} for name in ("context", "max_slice_nums", "max_images", "max_videos")}
_LIMITS = _object_of(
    **_DEFAULTS, max_media_bytes={"type": "integer"}, downsample_mode={"enum": list(DOWNSAMPLE_OPTIONS)}
)
_CARD = _object_of(
    id=_STRING,
    object={"const": "model"},
    created={"type": "integer"},
    owned_by=_STRING,
    root={"type": "string", "description": "The first name of the model; of an adapter the name of its folder"},
    max_model_len={"type": "integer"},
    pocketvlm=_LIMITS,
)
# Not required: what the model itself has not.
_CARD["properties"]["parent"] = {"type": "string", "description": "Of an adapter: the model that it belongs to"}
_CHOICES = _object_of(id=_STRING, choices={"type": "array"}, usage=_OBJECT)
_CARDS = _object_of(object={"const": "list"}, data={"type": "array", "items": _CARD})
_ITEMS_OUT = _object_of(id=_STRING, object={"const": "response"}, output={"type": "array"}, status=_STRING)


def _adapter_paths() -> tuple[tuple[str, str, str, Schema | None, Schema], ...]:
    """As `_paths`, of a server that loads adapters when it is asked to. Their bodies have no field `model`."""
    load = _closed({name: _ADAPTER[name] for name in LOAD_FIELDS}, tuple(LOAD_FIELDS))
    unload = _closed({"lora_name": _NAME, "lora_int_id": KINDS[UNLOAD_FIELDS["lora_int_id"]]}, ("lora_name",))
    return (
        ("post", "/v1/load_lora_adapter", "Serve an adapter, as a model of its own name", load, _PLAIN),
        ("post", "/v1/unload_lora_adapter", "Serve an adapter no longer", unload, _PLAIN),
    )


def _paths(model: Schema) -> tuple[tuple[str, str, str, Schema | None, Schema], ...]:
    """Method, path, what it is for, body, answer."""
    chat = _body(model, FIELDS, _CHAT, ("messages",), WITHOUT_EFFECT, OPTIONS)
    items = _body(model, RESPONSE_FIELDS, _RESPONSES, ("input",), WITHOUT_EFFECT_HERE, RESPONSE_OPTIONS)
    # Either a text or a conversation.
    conversation = _body(model, TOKENIZE_FIELDS - {"prompt"}, _TOKENIZE, ("messages",))
    text = _body(model, TOKENIZE_FIELDS - {*FIELDS} | {"model"}, _TOKENIZE, ("prompt",))
    ids = _body(model, DETOKENIZE_FIELDS, _DETOKENIZE, ("tokens",))
    views = _body(model, VIEW_PLAN_FIELDS, _VIEW_PLAN, ("images",))
    plans = _object_of(images={"type": "array"})
    document = _body(model, PAGES_FIELDS, _PAGES, ("document",))
    previews = _object_of(pages={"type": "integer"}, previews={"type": "array"})
    status = _object_of(status=_STRING)
    return (
        ("post", "/v1/chat/completions", "Answer a conversation", chat, _CHOICES),
        ("post", "/v1/responses", "Answer a conversation in items; nothing is stored", items, _ITEMS_OUT),
        ("post", "/tokenize", "Count tokens", {"anyOf": [text, conversation]}, _object_of(**_TOKENS)),
        ("post", "/detokenize", "Tokens as text", ids, _object_of(prompt=_STRING)),
        ("post", "/v1/view_plan", "Views of pictures; the model does not run", views, plans),
        ("post", "/v1/pages", "Pages of a document to choose from; the model does not run", document, previews),
        ("get", "/v1/models", "The model by all its names, and its adapters", None, _CARDS),
        ("get", "/v1/models/{model}", "One of them", None, _CARD),
        ("get", "/health", "Whether the server lives", None, status),
        ("get", "/ready", "Whether it takes requests", None, status),
    )


_REFUSALS = {
    "400": "The request cannot be honoured; the message says why",
    "401": "A key is wanted",
    "404": "There is no such model",
    "408": "The body did not arrive in time",
    "413": "The body is too large",
    "429": "Too many requests",
    "503": "The server is not ready",
    "504": "The time of the request was over",
}


def openapi(names: Sequence[str], *, adapters: bool = False) -> dict[str, Any]:
    """The whole description.

    Args:
        names: what requests may call the model and its adapters.
        adapters: whether requests may load and unload these.
    """
    model = {"enum": list(names)}
    paths: dict[str, Any] = {}
    for method, path, about, body, answer in (*_paths(model), *(_adapter_paths() if adapters else ())):
        streams = body is not None and "stream" in body.get("properties", {})
        operation: dict[str, Any] = {"summary": about, "responses": _responses(answer, streams=streams)}
        if body is not None:
            operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
        if "{" in path:
            operation["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": model}]
        if path in ("/health", "/ready"):
            operation["security"] = []
        paths.setdefault(path, {})[method] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "pocketvlm", "version": pocketvlm.__version__},
        "paths": paths,
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{"key": []}, {}],
    }


def _responses(answer: Schema, *, streams: bool) -> dict[str, Any]:
    content: dict[str, Any] = {"text/plain" if answer is _PLAIN else "application/json": {"schema": answer}}
    if streams:
        content["text/event-stream"] = {}
    refused = {"application/json": {"schema": {"anyOf": [_ERROR, _object_of(status=_STRING)]}}}
    return {
        "200": {"description": "The answer", "content": content},
        **{status: {"description": text, "content": refused} for status, text in _REFUSALS.items()},
    }
