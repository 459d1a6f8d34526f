"""vLLM's bodies of /tokenize and /detokenize: a text, or a conversation as in chat completions; or token ids."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pocketvlm.errors import ConfigError
from pocketvlm.protocol.chat_request import parse_chat_completion
from pocketvlm.protocol.fields import check, check_fields, given_fields

MAX_PROMPT = 2**22  # characters: many times what any context holds
MAX_TOKENS = 2**20
# Fields that are read as those of a chat completion.
_OF_CHAT = ("messages", "tools", "tool_choice", "chat_template_kwargs", "mm_processor_kwargs")
# Kind and allowed values of the others. A tokenizer of this family adds no tokens of its own to a text.
_OTHERS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "model": ("string", ()),
    "prompt": ("string", ()),
    "add_special_tokens": ("boolean", ()),
    "return_token_strs": ("boolean", ()),
    "add_generation_prompt": ("boolean", (True,)),
    "continue_final_message": ("boolean", (False,)),
}
TOKENIZE_FIELDS = frozenset((*_OF_CHAT, *_OTHERS))
DETOKENIZE_FIELDS = frozenset(("model", "tokens"))


@dataclass(frozen=True, slots=True)
class TokenizeRequest:
    """What a body asks for.

    Attributes:
        prompt: a text, whatever it spells never a control token; None for a conversation.
        messages, options: as in `ChatRequest`.
        strings: whether the text of each token is wanted as well.
    """

    model: str | None
    prompt: str | None
    messages: list[Any] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    strings: bool = False


def parse_tokenize(body: Any) -> TokenizeRequest:
    """Check a body and translate it; `ConfigError` or `PromptError` for what cannot be honoured."""
    given = given_fields(body, TOKENIZE_FIELDS)
    check_fields(given, _OTHERS)
    chat = {name: given[name] for name in _OF_CHAT if name in given}
    model, strings = given.get("model"), given.get("return_token_strs", False)
    if ("prompt" in given) == bool(chat):
        raise ConfigError("expected either prompt or messages", hint="Give one of them.")
    if chat:
        asked = parse_chat_completion(chat)
        options = {name: value for name, value in asked.options.items() if name != "structured_outputs"}
        return TokenizeRequest(model, None, asked.messages, options, strings)
    if len(given["prompt"]) > MAX_PROMPT:
        raise ConfigError(f"prompt has {len(given['prompt'])} characters, at most {MAX_PROMPT} are taken")
    return TokenizeRequest(model, given["prompt"], strings=strings)


def parse_detokenize(body: Any, vocab_size: int) -> tuple[str | None, list[int]]:
    """The model's name and the ids; `ConfigError` for what is no list of ids of the vocabulary."""
    given = given_fields(body, DETOKENIZE_FIELDS)
    model = check("model", given["model"], "string") if "model" in given else None
    if "tokens" not in given:
        raise ConfigError("the field 'tokens' is missing", hint="Give a list of token ids.")
    tokens = list(check("tokens", given["tokens"], "list of integers"))
    if len(tokens) > MAX_TOKENS:
        raise ConfigError(f"tokens has {len(tokens)} ids, at most {MAX_TOKENS} are taken")
    for token in tokens:
        if not 0 <= token < vocab_size:
            raise ConfigError(f"tokens has the id {token}, expected 0 to {vocab_size - 1}")
    return model, tokens
