"""Wordings: those that are held out are asked in the held-out split alone, beside the known ones."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
from helpers.wordings import groups, modules, read

from pocketvlm.synthetic import REGISTRY, make_sample
from pocketvlm.synthetic.words.values import HELDOUT_WORDINGS, Wordings, ask, ask_absent

GROUPS = {f"{module.__name__}.{name}": group for module in modules() for name, group in groups(module).items()}


@pytest.mark.parametrize("name", GROUPS)
def test_every_group_has_wordings_of_both_splits_and_repeats_none(name: str) -> None:
    group = GROUPS[name]
    both = (*group.train, *group.heldout)
    assert 3 <= len(group.train) <= 6
    assert group.heldout
    assert len(set(both)) == len(both)
    assert all(wording == wording.strip() and "  " not in wording for wording in both)


def test_no_wording_is_held_out_here_and_trained_on_there() -> None:
    for module in modules():
        asked = groups(module).values()
        trained = {wording for group in asked for wording in group.train}
        assert not trained & {wording for group in asked for wording in group.heldout}, module.__name__


def test_half_of_the_held_out_questions_are_in_held_out_wordings_and_no_others() -> None:
    group, rng = Wordings(("a", "b"), heldout=("c",)), np.random.default_rng(0)
    assert {group.draw(rng, "train") for _ in range(200)} == {"a", "b"}
    drawn = [group.draw(rng, "heldout") for _ in range(2000)]
    assert set(drawn) == {"a", "b", "c"}
    assert drawn.count("c") / 2000 == pytest.approx(HELDOUT_WORDINGS, abs=0.05)
    assert {Wordings(("a",)).draw(rng, "heldout") for _ in range(20)} == {"a"}


def test_wordings_are_filled_in() -> None:
    group, rng = Wordings(("{name}: {what}?",)), np.random.default_rng(0)
    assert ask(rng, "train", group, "1", name="Oak", what="age") == ("Oak: age?", "1", "text")
    assert ask_absent(rng, "train", group, name="Oak", what="age") == ("Oak: age?", "It is not there.", "absent")


@pytest.mark.parametrize("task", REGISTRY)
def test_samples_of_both_splits_are_asked_in_their_wordings(task: str) -> None:
    module = import_module(REGISTRY[task].draw.__module__)
    shares = {}
    for split in ("train", "heldout"):
        questions = [q for i in range(25) for q in make_sample(task, (21, i), split, 0).questions if q.kind != "json"]
        shares[split] = np.mean([read(module, question.text).is_heldout for question in questions])
    assert shares["train"] == 0
    assert 0.3 < shares["heldout"] < 0.7
