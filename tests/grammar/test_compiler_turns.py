"""Whose turn it is to compile: nothing is done for those who have left, and no grammar is blamed for the machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pocketvlm.errors import EngineError
from pocketvlm.grammar.compiler import GrammarCompiler
from pocketvlm.grammar.structured_outputs import StructuredOutputs
from pocketvlm.processing.prompt.tokenizer import Tokenizer

SPEC = StructuredOutputs(choice=("not", "compiled"))


@pytest.fixture(scope="module")
def compiler(checkpoint: Path) -> Iterator[GrammarCompiler]:
    tokenizer = Tokenizer.from_directory(checkpoint)
    with closing(GrammarCompiler(tokenizer, tokenizer.vocab_size, tokenizer.stop_ids)) as compiler:
        yield compiler


def leaves_at(look: int) -> Callable[[], None]:
    """A caller who has left when it is looked for the `look`-th time."""
    looks = list[int]()

    def check() -> None:
        looks.append(1)
        if len(looks) >= look:
            raise EngineError("nobody waits")

    return check


def test_a_grammar_that_nobody_waits_for_waits_no_longer(compiler: GrammarCompiler) -> None:
    began = time.monotonic()
    with compiler._compiling, pytest.raises(EngineError, match="nobody waits"):
        compiler.compile(SPEC, check=leaves_at(3))
    assert time.monotonic() - began < 20, "it waits as if somebody waited for it"


def test_a_grammar_whose_turn_comes_too_late_is_not_compiled(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = list[str]()
    monkeypatch.setattr(compiler, "_compile", compiled.append)
    with pytest.raises(EngineError, match="nobody waits"):
        compiler.compile(SPEC, check=leaves_at(2))
    assert compiled == []
    assert not compiler._compiling.locked()


def test_a_process_that_does_not_start_is_no_fault_of_a_grammar(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler._worker, "_ready", False)
    with monkeypatch.context() as patch:
        patch.setattr(compiler._worker, "_ask", lambda *_: None)
        with pytest.raises(EngineError, match="did not start"):
            compiler.compile(SPEC)
    assert compiler.compile(SPEC)
