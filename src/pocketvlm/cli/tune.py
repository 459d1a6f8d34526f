"""pocketvlm tune DATA: fine-tune a model on a file or folder of conversations."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketvlm.cli.common import (
    PICTURES,
    VIDEO,
    add_json,
    add_options,
    check_ranges,
    directory_of,
    options_of,
)
from pocketvlm.cli.console import put, put_json, say
from pocketvlm.cli.own_data import tell_unused
from pocketvlm.cli.tune_folder import check_data, check_out
from pocketvlm.cli.tune_job import add_job, emit_job, job_of
from pocketvlm.config import check_auto_token_budget, check_downsample_mode
from pocketvlm.errors import ConfigError, need
from pocketvlm.ranges import Range
from pocketvlm.training.data.sample import SampleError
from pocketvlm.training.interchange.programs import EMITTED
from pocketvlm.training.settings import LOG, PRESETS, TuneSettings

if TYPE_CHECKING:
    from pocketvlm.api.vlm import VLM
    from pocketvlm.training.data.dataset import Dataset

# Groups of settings in the help, behind those of the run itself.
_GROUPS = {
    "optimiser": "optimiser",
    "adapters": "adapters (lora and qlora)",
    "samples": "samples",
    "memory": "memory",
    "evaluation": "evaluation and checkpoints",
}

_NUMBERS = {one.name: one.metadata["allowed"] for one in fields(TuneSettings)}
# Names that the same option has in ms-swift, LLaMA-Factory or transformers, for those who expect it under these.
ELSEWHERE = {
    "lr": "learning-rate",
    "lora-r": "rank",
    "lora-rank": "rank",
    "lora-alpha": "alpha",
    "lora-dropout": "dropout",
    "use-dora": "dora",
    "use-rslora": "rslora",
    "num-train-epochs": "epochs",
    "max-steps": "steps",
    "output": "out",
    "output-dir": "out",
    "tuner-type": "method",
    "train-type": "method",
    "finetuning-type": "method",
    "rlhf-type": "objective",
    "stage": "objective",
    "optim": "optimiser",
    "val-dataset": "validation",
    "eval-dataset": "validation",
    "val-size": "split",
    "split-dataset-ratio": "split",
    "max-length": "max-tokens",
    "cutoff-len": "max-tokens",
    "warmup-ratio": "warmup",
    "max-grad-norm": "clip",
    "gradient-accumulation-steps": "batch-size",
    "per-device-train-batch-size": "batch-size",
    "save-steps": "save-every",
    "eval-steps": "eval-every",
}
_EVAL_SEED = 2026  # as `pocketvlm eval` draws its examples where nothing else is asked for
RANGES = {
    "workers": Range(int, 0, 256),
    "memory": Range(float, 0.0, 1e6, nullable=True, is_open=True),
    "split": Range(float, 0.0, 0.9, nullable=True, is_open=True),
} | {name: replace(allowed, nullable=True) for name, allowed in _NUMBERS.items() if isinstance(allowed, Range)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "pocketvlm tune [options] DATA…"
    parser.epilog = (
        "DATA: JSONL of ms-swift, OpenAI or LLaMA-Factory (a folder with dataset_info.json), a Hugging Face folder, "
        "Parquet, or a folder of pictures with a CSV. --downsample-mode takes random too: 16x or 4x for each view. A "
        "run that was stopped goes on when the same command is given "
        "again. Exit status: 0 done, 1 the run failed or samples were skipped, 2 wrong usage or input, 130 stopped."
    )
    parser.add_argument("data", nargs="*", metavar="DATA", help="files or folders of conversations")
    parser.add_argument(
        "--out", type=Path, default=Path("tuned"), metavar="DIR", help="folder of the run (default tuned)"
    )
    parser.add_argument("--model", help="nano (embedded, default), a checkpoint directory or a hub id")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--validation",
        metavar="FILE",
        help="samples to measure with, which nothing is learnt from; of a folder with several sets FOLDER:NAME,…",
    )
    parser.add_argument("--split", type=float, metavar="SHARE", help="of DATA, to measure with instead of learning it")
    parser.add_argument("--check", action="store_true", help="read every sample and show some; train nothing")
    parser.add_argument(
        "--plan", action="store_true", help="print the memory that a step needs, by part; train nothing"
    )
    parser.add_argument(
        "--memory",
        type=float,
        metavar="GIB",
        help="with --plan: of the card that is planned for, which need not be here (--device is cuda then, or cpu)",
    )
    add_job(parser)
    parser.add_argument("--workers", type=int, default=0, help="processes that read pictures ahead (default 0)")
    parser.add_argument(
        "--preset", choices=PRESETS, help="method and parts of a stage in which the published model was trained"
    )
    groups = {"run": parser, **{name: parser.add_argument_group(title) for name, title in _GROUPS.items()}}
    for one in fields(TuneSettings):
        _add(groups[one.metadata["of"]], one.name)
    data = groups["samples"]
    data.add_argument("--sets", type=_names, default=(), metavar="NAME,…", help="sets of a folder with several")
    data.add_argument(
        "--weights",
        type=_numbers,
        default=(),
        metavar="X,…",
        help="how often an epoch goes through each set",
    )
    data.add_argument("--media-dir", type=Path, metavar="DIR", help="what paths of media are relative to")
    add_options(parser.add_argument_group("pictures and videos"), PICTURES, VIDEO)
    add_json(parser)


def _add(parser: Any, name: str) -> None:
    """An option of the name of a setting; None when it is not given."""
    one = next(one for one in fields(TuneSettings) if one.name == name)
    text, flag = one.metadata["help"], f"--{name.replace('_', '-')}"
    if one.default is False:
        parser.add_argument(flag, action="store_true", default=None, help=text)
        return
    kind: Any = {"int": int, "float": float}.get(str(one.type).partition(" ")[0], str)
    if isinstance(one.default, tuple):
        of = "PART" if name == "tune" else "NAME"
        parser.add_argument(flag, type=_names, default=None, metavar=f"{of},…", help=text)
        return
    default = "" if one.default in (None, MISSING) else f" (default {one.default})"
    choices = one.metadata["allowed"] if isinstance(one.metadata["allowed"], tuple) else None
    parser.add_argument(flag, type=kind, default=None, choices=choices, help=f"{text}{default}")


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(one) for one in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r:.80} is not numbers with commas between them") from None


def run(args: argparse.Namespace) -> int:
    given = {one.name: getattr(args, one.name) for one in fields(TuneSettings)}
    check_ranges(args, RANGES)
    preset = {} if args.preset is None else PRESETS[args.preset]
    _check_given(given)
    need("torch", "torch", "tune")
    job = job_of(args)
    settings = job.settings_with({**preset, **{name: value for name, value in given.items() if value is not None}})
    for name in ("rank", "alpha", "dropout"):
        if given[name] is not None and settings.method == "full":
            raise ConfigError(f"--{name} is of LoRA, and method full has none", hint="Leave it out.")
    for name in ("beta", "rpo_alpha"):
        if given[name] is not None and settings.objective != "dpo":
            raise ConfigError(f"--{name.replace('_', '-')} is of DPO", hint="Give --objective dpo, or leave it out.")
    options = {**job.options, **options_of(args, PICTURES, VIDEO)}
    directory = directory_of(args)
    mode = options.get("downsample_mode", directory.config.downsample_mode)
    if mode != "random":  # 16x or 4x for each sample
        check_downsample_mode(mode)
    check_auto_token_budget(options.get("auto_token_budget"), mode == "auto")
    check_out(args.out)
    if directory.kind == "bundle":
        raise ConfigError(f"{directory.path} is a bundle of ONNX Runtime", hint="Tune the checkpoint it was made of.")
    from pocketvlm.training.data.dataset import open_datasets, tell_apart

    if "" in (*args.data, args.validation):
        raise ConfigError("the name of a file of samples is empty", hint="Name a file or a folder.")
    validation: Dataset | None
    if args.data:
        samples = open_datasets(args.data, names=args.sets, weights=args.weights, media_dir=args.media_dir)
    else:
        samples = job.samples(settings.seed)
    if args.split and args.validation:
        raise ConfigError("--split and --validation both choose what to measure with", hint="Give one of them.")
    if args.validation:
        measured = ("validation", "test")  # of a folder with splits
        place, names = _validation(args.validation)
        validation = open_datasets([place], names=names, media_dir=args.media_dir, splits=measured)
    else:
        validation = job.measured(settings.seed, args.split)
    if split := args.split or (None if validation else job.split):
        samples, validation = samples.split(split, settings.seed)
    if validation is not None:
        tell_apart((*samples.sources, *validation.sources))
    if args.memory is not None and not args.plan:
        raise ConfigError("--memory is of the card that --plan is for", hint="Give --plan, or leave it out.")
    modes = [f"--{mode}" for mode in ("check", "plan", "emit") if getattr(args, mode)]
    if len(modes) > 1:
        raise ConfigError(f"{modes[0]} and {modes[1]} are two things", hint="Give one of them.")
    check_data(args.out, EMITTED if args.emit else (LOG,), samples, validation)
    is_first = os.environ.get("RANK", "0") == "0"  # of the processes of torchrun: the one that speaks for all
    if is_first:
        _tell(samples, validation, settings)
    if args.emit:
        return emit_job(args, samples, validation, settings, options)
    if args.check or args.plan:
        from pocketvlm.cli import tune_dry

        if args.plan:
            return tune_dry.plan(args, samples, settings, options)
        return tune_dry.check(args, [samples] if validation is None else [samples, validation], settings, options)
    measure = _measure(settings, options)
    from pocketvlm.training.run import tune  # brings torch

    def shown(report: Any) -> None:
        if not is_first:
            return
        if report.step == 1 or report.step % 10 == 0 or report.step == report.steps:
            of = f" of {report.steps}" if report.steps else ""
            say(
                f"step {report.step}{of}: loss {report.loss:.4f}, rate {report.rate:.2e}, {report.tokens_s:.0f} "
                f"tokens/s, {report.memory / 2**30:.1f} GiB, {report.seconds:.0f} s, {report.left:.0f} s left"
            )

    train = partial(
        tune,
        directory,
        samples,
        args.out,
        settings,
        validation=validation,
        options=options,
        base=args.model,
        device=args.device,
        workers=args.workers,
        identity={
            "data": [str(source) for source in args.data] or repr(job.data),
            "weights": args.weights,
            "sets": args.sets,
            "media_dir": args.media_dir and str(args.media_dir),
            "options": options,
            "split": split,
            "contents of the data": samples.fingerprint(),
            "contents of what is measured with": None if validation is None else validation.fingerprint(),
        },
        measure=measure,
        on_step=shown,
        facts=_facts(args, split, validation),
    )
    try:
        result = train()
    except KeyboardInterrupt:
        if not (args.out / "checkpoints").is_dir():
            raise
        raise KeyboardInterrupt(f"{args.out} keeps its last checkpoint; the same command goes on from there") from None
    if not is_first:
        return 0
    found = asdict(result)
    bad, cut = found.pop("bad"), found.pop("cut")
    if found["tasks"] is None:
        del found["tasks"]
    if args.json:
        put_json(found)
    else:
        put(f"{result.out}: {result.steps} steps in {result.seconds:.0f} s, loss of the last ones {_loss(result.loss)}")
        if result.validation:
            exact = result.validation["exact"]
            share = "" if exact is None else f", {exact:.1%} of the answers exact"
            put(f"validation: loss {_loss(result.validation['loss'])}{share}")
        for name, score in (result.tasks or {}).items():
            put(f"{name}: {score:.1%}")
        put(f"Try it: {_try(args, settings, options)}")
    if cut:
        say(f"{cut} samples were cut off at their end, since they are too long")
    if bad:
        say(f"{len(bad)} samples were skipped; the log names them: {result.out}/training.jsonl")
    return int(bool(bad))


def _check_given(given: Mapping[str, Any]) -> None:
    """Refuse options that others make say nothing."""
    if given["epochs"] is not None:
        for name in ("steps", "minutes"):
            if given[name] is not None:
                raise ConfigError(f"--epochs and --{name} both say how long", hint="Give one of them.")


def _validation(text: str) -> tuple[str, tuple[str, ...]]:
    """A file or a folder, and the names of its sets that stand behind a colon."""
    folder, _, names = text.rpartition(":")
    is_choice = folder and names and not Path(text).exists() and Path(folder).is_dir()
    return (folder, tuple(names.split(","))) if is_choice else (text, ())


def _tell(samples: Dataset, validation: Dataset | None, settings: TuneSettings) -> None:
    """Say what of the data is not learnt, and what is measured with and learnt too."""
    tell_unused(samples, validation)
    for path, count in (samples.shared_with(validation) if validation else {}).items():
        say(f"{count} samples of {path} are both learnt and measured with: what is measured says little about others")
    if settings.objective == "sft" and _has_rejected(samples):
        say("the samples have rejected answers, which are left out: --objective dpo learns from both")


def _loss(value: float | None) -> str:
    """A loss; a dash where nothing was learnt, or measured."""
    return "–" if value is None else f"{value:.4f}"


def _try(args: argparse.Namespace, settings: TuneSettings, options: Mapping[str, Any]) -> str:
    """A command that asks what was made, with the run's own options of pictures."""
    from pocketvlm.training.report import asking

    return asking(args.out, settings, args.model, options, "FILE", "QUESTION")


def _facts(args: argparse.Namespace, split: float | None, validation: Dataset | None) -> dict[str, str]:
    """Of the data, for the card. Folders above are nobody's business."""
    facts = {"data": ", ".join(Path(source).name for source in args.data or [str(args.config)])}
    facts |= {"sets": ", ".join(args.sets), "weights of the sets": ", ".join(f"{one:g}" for one in args.weights)}
    measured = f"{split:g} of the data" if split else ""
    if validation and not split:
        measured = Path(args.validation or ", ".join(Path(source.name).name for source in validation.sources)).name
    return {**facts, "measured with": measured}


def _has_rejected(samples: Dataset) -> bool:
    """Whether the first sample that can be read has a rejected answer."""
    for index in range(min(len(samples), 100)):
        try:
            return samples[index].rejected is not None
        except SampleError:
            continue
    return False


def _measure(settings: TuneSettings, options: Mapping[str, Any]) -> Callable[[VLM], Mapping[str, float]] | None:
    """What asks a model the tasks that the settings name, the same held-out examples each time, with the run's own
    options of pictures."""
    if not settings.eval_tasks:
        return None
    from pocketvlm.evaluation.answerers import LocalModel
    from pocketvlm.evaluation.harness import evaluate
    from pocketvlm.evaluation.report import summarise
    from pocketvlm.evaluation.suite import SyntheticSuite

    asked = {"temperature": 0.0, **options}
    if asked.get("downsample_mode") == "random":  # which is for learning: the model's own rate then
        del asked["downsample_mode"]
    suite = SyntheticSuite()
    tasks = [suite.task(name) for name in dict.fromkeys(settings.eval_tasks)]

    def measure(vlm: VLM) -> dict[str, float]:
        found = evaluate(tasks, LocalModel(vlm, asked), count=settings.eval_count, seed=_EVAL_SEED)
        return {name: round(summarise(records).score, 4) for name, records in found.items()}

    return measure
