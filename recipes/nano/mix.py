"""The shares of the kinds of pictures, set by what the suite says is weakest.

The rule: every `EVERY` steps of a stage that is `measured`, each kind of picture is asked `COUNT` examples of each task
of the suite that draws it, and its share in the steps of the decoder becomes its share in the stage times
1.5 - the mean score of its tasks: half of it where all is right, one and a half times where nothing is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pocketvlm.api.vlm import VLM
from pocketvlm.evaluation.answerers import LocalModel
from pocketvlm.evaluation.scoring import score
from pocketvlm.evaluation.suite import NotThereTask, SyntheticSuite, SyntheticTask
from pocketvlm.evaluation.tasks import Example
from pocketvlm.model.vlm import MiniCPMV
from pocketvlm.processing.processor import Processor
from pocketvlm.training.evaluate import measure_model
from pocketvlm.training.processes import Processes

EVERY = 1000  # steps
COUNT = 40
SEED = 7  # not that of `pocketvlm eval`: what decides the shares is not what the model is judged by


def factors(scores: Mapping[str, float]) -> dict[str, float]:
    """What shares are multiplied by, by the kind of picture. A kind without a score stays as it is.

    Args:
        scores: mean score of each kind, 0 to 1.
    """
    return {kind: round(1.5 - value, 4) for kind, value in sorted(scores.items())}


def measure(
    model: MiniCPMV, processor: Processor, processes: Processes, count: int = COUNT, tasks: tuple[str, ...] = ()
) -> dict[str, float]:
    """Mean score of each kind of picture; processes share the examples.

    Args:
        tasks: of the suite; all when empty.
    """
    suite = SyntheticSuite()
    chosen = [suite.task(name) for name in tasks or suite.names()]
    totals = {kind: [0.0, 0.0] for kind in sorted({kind for task in chosen for kind in _kinds(task)})}

    def add(vlm: VLM) -> Mapping[str, float]:
        vlm.progress = None
        for task in chosen:
            examples = _examples(task, range(processes.rank, count, processes.world))
            for _, example, reply in LocalModel(vlm, {"temperature": 0.0}).answer(enumerate(examples)):
                kind = _kinds(task)[0] if isinstance(task, SyntheticTask) else example.subset
                totals[kind][0] += 0.0 if reply.error else score(reply.answer, example)
                totals[kind][1] += 1
        return {}

    measure_model(model, processor, add)
    found = {kind: (processes.total(right), processes.total(asked)) for kind, (right, asked) in totals.items()}
    return {kind: right / asked for kind, (right, asked) in found.items() if asked}


def _kinds(task: SyntheticTask | NotThereTask) -> list[str]:
    return [task.row.draws] if isinstance(task, SyntheticTask) else [part.row.draws for part in task.parts]


def _examples(task: SyntheticTask | NotThereTask, indices: range) -> Iterator[Example]:
    return (task.example(index, SEED) for index in indices)
