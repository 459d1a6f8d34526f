"""What a record says of a conversation, in the words of any program → turns: `{"role", "content", ...}`.

Roles are those of OpenAI in the end. ShareGPT's (`human`, `gpt`, `observation`, `function_call`) and ms-swift's
(`tool_call`, `tool_response`) are translated; `Tags` says which names a LLaMA-Factory description gives them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from pocketvlm.errors import PromptError
from pocketvlm.ranges import show_json
from pocketvlm.training.data.json_records import parse

Turn = dict[str, Any]

_CALL = "call"  # the calls of an assistant, as a message of their own
_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model"), "assistant"),
    **dict.fromkeys(("tool", "tool_response", "observation", "function_response"), "tool"),
    **dict.fromkeys(("tool_call", "function_call"), _CALL),
}


@dataclass(frozen=True, slots=True)
class Tags:
    """How a LLaMA-Factory description names things; its defaults."""

    role_tag: str = "from"
    content_tag: str = "value"
    user_tag: str = "human"
    assistant_tag: str = "gpt"
    observation_tag: str = "observation"
    function_tag: str = "function_call"
    system_tag: str = "system"

    @property
    def roles(self) -> dict[str, str]:
        names = (self.user_tag, self.assistant_tag, self.observation_tag, self.function_tag, self.system_tag)
        return dict(zip(names, ("user", "assistant", "tool", _CALL, "system"), strict=True))


TAGS = tuple(field.name for field in fields(Tags))


def turns_of(
    found: Mapping[str, Any], tags: Tags | None = None, *, ranking: bool | None = None
) -> tuple[list[Turn], str | None]:
    """The turns of a record, and the rejected answer of preference data.

    Args:
        found: by our names, see `columns`.
        tags: how messages are named; by their own keys when None.
        ranking: whether it must be preference data, or must not; as it is when None.

    Raises:
        PromptError: they form no conversation that ends with an answer.
    """
    turns = _conversation(found, tags)
    if "chosen" in found:
        before, better = _answer(found["chosen"], "chosen", tags)
        if before and turns and before != turns:
            raise PromptError("chosen does not go on with the conversation", hint="Give the answer alone.")
        if "rejected" not in found:
            raise PromptError("it has a chosen answer and no rejected one", hint="Preference data has both.")
        turns = [*(turns or before), {"role": "assistant", "content": better}]
    if system := found.get("system"):
        if not isinstance(system, str):
            raise PromptError(f"system is {show_json(system)}, expected text")
        if not turns or turns[0]["role"] != "system":
            turns.insert(0, {"role": "system", "content": system})
    if not turns:
        raise PromptError("it has no conversation", hint="Name a column messages, or two question and answer.")
    check_order(turns)
    rejected = _rejected(found, turns, tags) if "rejected" in found else None
    if ranking is not None and ranking != (rejected is not None):
        wanted = "has no rejected answer, and its set is of preferences" if ranking else "has a rejected answer"
        raise PromptError(f"it {wanted}", hint="Correct `ranking` in dataset_info.json.")
    return turns, rejected


def check_order(turns: Sequence[Turn]) -> None:
    """Refuse turns that are no conversation: one system message first, then questions and answers in turn."""
    last = ""
    for number, turn in enumerate(turns):
        role, where = turn["role"], f"messages[{number}]"
        if role == "system":
            if number:
                raise PromptError(f"{where} is a system message, expected it first", hint="Move it to the front.")
            continue
        if role == "tool":
            if not last or last == "user":
                raise PromptError(f"{where} is a tool's, and none was called", hint="It follows an assistant's call.")
        elif (role == "assistant") != (last in ("user", "tool")):
            if last == role:
                raise PromptError(f"{where} is of role {role!r}, as that before it", hint="Join them.")
            follows = f"follows {last!r}" if last else "comes first"
            raise PromptError(f"{where} is of role {role!r} and {follows}", hint="Questions and answers come in turn.")
        if role == "assistant" and _is_blank(turn.get("content")) and not turn.get("tool_calls"):
            raise PromptError(f"{where} is an empty answer", hint="Write the answer, or take the sample out.")
        last = role
    if last != "assistant":
        raise PromptError("it has no answer: its last message is not the assistant's", hint="End with an answer.")


def _conversation(found: Mapping[str, Any], tags: Tags | None) -> list[Turn]:
    """The turns without chosen and rejected answers."""
    if "messages" in found:
        if "prompt" in found or "response" in found:
            raise PromptError("it has messages and a question or an answer beside them", hint="Keep one of them.")
        return _turns(found["messages"], "messages", tags)
    turns: list[Turn] = []
    for number, pair in enumerate(_listed(found.get("history", []), "history")):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise PromptError(f"history[{number}] is {show_json(pair)}, expected a question and an answer")
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    prompt, given = found.get("prompt"), found.get("input")
    if isinstance(prompt, list | tuple):
        turns += _turns(prompt, "prompt", tags)
    elif prompt is not None or given is not None:
        texts = [_plain(text, name) for text, name in ((prompt, "the question"), (given, "input")) if text is not None]
        turns.append({"role": "user", "content": "\n".join(texts)})
    elif "response" in found:  # a caption
        turns.append({"role": "user", "content": ""})
    if "response" in found:
        response = found["response"]
        if isinstance(response, list | tuple | Mapping) and "prompt" in found:
            before, response = _answer(response, "the answer", tags)
            if before:
                raise PromptError("the answer is of several messages, expected one")
        turns.append({"role": "assistant", "content": response})
    return turns


def _turns(messages: Any, what: str, tags: Tags | None) -> list[Turn]:
    if isinstance(messages, str) and messages.lstrip().startswith("["):  # as a cell of a table
        messages = parse(b'{"messages": ' + messages.encode(errors="replace") + b"}")["messages"]
    turns: list[Turn] = []
    for number, message in enumerate(_listed(messages, what)):
        where = f"{what}[{number}]"
        if not isinstance(message, Mapping):
            raise PromptError(f"{where} is {show_json(message)}, expected an object with role and content")
        for turn in _turn({key: value for key, value in message.items() if value is not None}, where, tags):
            if turn["role"] == _CALL:
                calls = list(_calls(turn["content"], where))
                if turns and turns[-1]["role"] == "assistant":  # its words before the call, or another call
                    turns[-1]["tool_calls"] = [*turns[-1].get("tool_calls", ()), *calls]
                    continue
                turn = {"role": "assistant", "content": "", "tool_calls": calls}
            turns.append(turn)
    if turns and turns[0]["role"] == "system" and _is_blank(turns[0].get("content")):
        del turns[0]
    return turns


def _turn(message: dict[str, Any], where: str, tags: Tags | None) -> Iterator[Turn]:
    """The turn of one message, or the two of a pair of ms-swift's ShareGPT: `{"human", "assistant"}`."""
    if tags is None and "role" not in message and "from" not in message and "assistant" in message:
        asked = message.get("human", message.get("user"))
        yield {"role": "user", "content": asked}
        yield {"role": "assistant", "content": message["assistant"]}
        return
    role_key, content_key, roles = "role", "content", _ROLES
    if tags is not None:
        role_key, content_key, roles = tags.role_tag, tags.content_tag, tags.roles
    elif "role" not in message and "from" in message:
        role_key, content_key = "from", "value"
    role = message.get(role_key)
    if not isinstance(role, str) or role not in roles:
        names = ", ".join(dict.fromkeys(roles))
        raise PromptError(f"{where}: {role_key} is {show_json(role)}, expected one of {names}")
    for key in ("loss", "weight"):  # of other messages nothing is learnt
        if roles[role] in ("assistant", _CALL) and not message.get(key, 1):
            raise PromptError(f"{where} is not to be learnt ({key}), and every answer is", hint="Take it out.")
    rest = {key: value for key, value in message.items() if key not in (role_key, content_key, "loss", "weight")}
    if role_key == "from":
        rest = {}
    elif rest.get("name") and roles[role] != "tool":
        rest.pop("name")
    if content_key not in message and not rest.get("tool_calls"):
        raise PromptError(f"{where} has no {content_key}", hint=f"It has {', '.join(map(repr, message))}.")
    yield {"role": roles[role], "content": message.get(content_key, ""), **rest}


def _calls(content: Any, where: str) -> Iterator[dict[str, Any]]:
    """The calls of ms-swift's `tool_call` and LLaMA-Factory's `function_call`: JSON of one, or of a list."""
    if not isinstance(content, str):
        raise PromptError(f"{where} is {show_json(content)}, expected the JSON of a call")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        raise PromptError(f"{where} is no JSON of a call", hint='Such as {"name": ..., "arguments": {...}}.') from None
    for call in value if isinstance(value, list) else [value]:
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            raise PromptError(f"{where} is a call without a name", hint='Such as {"name": ..., "arguments": {...}}.')
        yield {"function": {"name": call["name"], "arguments": call.get("arguments", {})}}


def _answer(value: Any, what: str, tags: Tags | None) -> tuple[list[Turn], str]:
    """(the turns in front of it, its text) of an answer: text, a message, or a conversation that ends with it."""
    if isinstance(value, str):
        return [], value
    listed = [value] if isinstance(value, Mapping) else value
    if not isinstance(listed, list | tuple) or not all(isinstance(one, Mapping) for one in listed):
        hint = "Keep one of several answers." if isinstance(listed, list | tuple) else "Put it in quotation marks."
        raise PromptError(f"{what} is {show_json(value)}, expected text", hint=hint)
    turns = _turns(listed, what, tags)
    if not turns or turns[-1]["role"] != "assistant":
        raise PromptError(f"{what} does not end with an answer of the assistant")
    return turns[:-1], _plain(turns[-1]["content"], what)


def _rejected(found: Mapping[str, Any], turns: list[Turn], tags: Tags | None) -> str:
    before, worse = _answer(found["rejected"], "rejected", tags)
    if before and [turn for turn in before if turn["role"] != "system"] != [
        turn for turn in turns[:-1] if turn["role"] != "system"
    ]:
        raise PromptError("rejected differs from the better answer already before its last message")
    if not worse.strip():
        raise PromptError("the rejected answer is empty", hint="Write the answer, or take the sample out.")
    better = turns[-1]["content"]
    if isinstance(better, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in better):
        better = _plain(better, "the better answer") if better else ""
    if isinstance(better, str) and worse.strip() == better.strip():  # templates leave out blanks around an answer
        raise PromptError("the rejected answer is the better one", hint="Nothing is learnt of two equal answers.")
    return worse


def _plain(value: Any, what: str) -> str:
    """Text, also as a list of parts that are text."""
    if (
        isinstance(value, list)
        and value
        and all(isinstance(one, Mapping) and one.get("type") == "text" for one in value)
    ):
        value = "\n".join(str(one.get("text") or "") for one in value)
    if not isinstance(value, str):
        hint = "Put it in quotation marks." if isinstance(value, int | float) else ""
        raise PromptError(f"{what} is {show_json(value)}, expected text", hint=hint)
    return value


def _listed(value: Any, what: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise PromptError(f"{what} is {show_json(value)}, expected a list")
    return value


def _is_blank(content: Any) -> bool:
    if isinstance(content, list):
        return not any(not isinstance(one, Mapping) or one.get("type") != "text" or one.get("text") for one in content)
    return content is None or (isinstance(content, str) and not content.strip())
