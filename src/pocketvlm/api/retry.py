"""Runs over many requests that outlast a fault: what it took with it is asked once more, alone."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from pocketvlm.api.processed import Conversation
from pocketvlm.errors import PocketVLMError, UnavailableError

if TYPE_CHECKING:
    from pocketvlm.api.answers import Answer
    from pocketvlm.api.vlm import VLM

FAULTS = 8  # of a run that goes on, beyond those of one step: where more follow each other, all others would
Key = TypeVar("Key", bound=Hashable)
Asked = tuple[Conversation, Mapping[str, Any]]


def answer_each(
    vlm: VLM, keys: Iterable[Key], request: Callable[[Key], Asked | PocketVLMError], ahead: int
) -> Iterator[tuple[Key, list[Answer] | Exception]]:
    """Answer the request of each key, in the order in which answers are complete.

    A step of the engine that fails takes all requests with it that it ran: faults (whatever is no `PocketVLMError`)
    are no outcome until the request has met one alone, behind all others. Bad input is an outcome at once.

    Args:
        request: makes the request of a key, again where it was lost; or says what is wrong with it.
        ahead: requests under way at a time.

    Raises:
        Exception: the last of more than `FAULTS` faults in a row, beside those that one step may cause, or the first
            that says that the engine has failed for good. No request behind it would fare better.
    """
    lost: list[Key] = []
    refused: list[tuple[Key, PocketVLMError]] = []

    def asked(some: Iterable[Key]) -> Iterator[tuple[Key, Conversation, Mapping[str, Any]]]:
        for key in some:
            made = request(key)
            if isinstance(made, PocketVLMError):
                refused.append((key, made))
            else:
                yield key, *made

    for is_last, some, at_a_time in ((False, keys, ahead), (True, lost, 1)):
        faults = 0
        for key, outcome in vlm.as_completed(asked(some), ahead=at_a_time):
            while refused:
                yield refused.pop(0)
            if not isinstance(outcome, Exception) or isinstance(outcome, PocketVLMError):
                faults = 0
                yield key, outcome
                continue
            faults += 1
            if isinstance(outcome, UnavailableError) or (not is_last and faults > FAULTS + at_a_time):
                raise outcome  # of those that are asked alone, each may be to blame itself
            if is_last:
                yield key, outcome
            else:
                lost.append(key)
        yield from refused
        refused.clear()
