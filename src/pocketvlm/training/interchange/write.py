"""A run here → data and a settings file with which the same run happens in another program."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pocketvlm.errors import ConfigError, MissingExtraError
from pocketvlm.files import whole_file
from pocketvlm.model.directory import ModelDirectory
from pocketvlm.training.data.dataset import Dataset
from pocketvlm.training.data.emit import emit
from pocketvlm.training.data.sample import Sample, SampleError
from pocketvlm.training.interchange import factory, swift
from pocketvlm.training.interchange.programs import FILES, NAMES, Program
from pocketvlm.training.settings import TuneSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Emitted:
    """Attributes:
    settings: the file.
    command: what runs it.
    samples, validation: how many were written.
    bad: what is wrong with those that were left out, by file and line.
    notes: what is different there, a line each.
    """

    settings: str
    command: str
    samples: int
    validation: int
    bad: dict[str, str]
    notes: list[str]


def emit_job(
    program: Program,
    out: Path,
    samples: Dataset,
    settings: TuneSettings,
    directory: ModelDirectory,
    *,
    validation: Dataset | None = None,
    options: Mapping[str, Any] | None = None,
    model: str | None = None,
    on_cpu: bool = False,
) -> Emitted:
    """Write data and settings into a folder.

    Args:
        out: the folder, which is made where there is none.
        directory: of the model.
        options: of pictures that are not as the model has them.
        model: its name in a hub; its directory when None.
        on_cpu: the run is for a CPU; for a GPU otherwise.

    Raises:
        ConfigError: a setting or an option has no place in the other program.
        SampleError: a sample has none; or one is bad, and the settings say that this stops.
        MissingExtraError: pyyaml is not installed.
    """
    try:
        import yaml
    except ImportError:
        raise MissingExtraError("pyyaml", "tune") from None
    folder, options = out.absolute(), dict(options or {})
    named, rate = model or str(directory.path.absolute()), settings.rate(directory.config.text)
    mode, own = options.get("downsample_mode"), directory.config.downsample_mode
    if (mode or own) not in ("16x", "4x"):
        hint = "Choose 16x or 4x."
        raise ConfigError(f"{NAMES[program]} has no place for --downsample-mode {mode or own}", hint=hint)
    if program == "swift":
        images = (directory.image_config, directory.configs.video)
        keys, notes = swift.write(
            settings,
            images,
            options,
            own,
            named,
            str(folder),
            rate,
            has_validation=validation is not None,
            on_cpu=on_cpu,
        )
        command = f"swift {'rlhf' if settings.objective == 'dpo' else 'sft'}"
    else:
        for option, value in options.items():
            if option != "downsample_mode" and value != getattr(directory.image_config, option, None):
                flag = f"--{option.replace('_', '-')}"
                hint = "Leave it out, or write it into preprocessor_config.json of the model."
                raise ConfigError(f"LLaMA-Factory has no place for {flag} {value}", hint=hint)
        keys, notes = factory.write(
            settings, directory.config, named, str(folder), rate, has_validation=validation is not None, on_cpu=on_cpu
        )
        rated = f"DOWNSAMPLE_MODE={mode or own} "  # without it, the rate of the files of pictures
        # It asks for versions of transformers that do not know the model.
        command = f"{rated}DISABLE_VERSION_CHECK=1 llamafactory-cli train"
    bad: dict[str, str] = {}
    written, videos = [0, 0], list[str]()
    for place, (name, dataset) in enumerate((("train", samples), ("validation", validation))):
        if dataset is not None:
            emit(_good(dataset, settings, program, bad, written, place, videos), folder, program, name=name)
    if program == "llamafactory" and videos:
        notes.append(f"its template for this model ends with an error at a video (0.9.5), such as that of {videos[0]}")
    path = folder / FILES[program]
    command = f"{command} {shlex.quote(str(path))}"
    head = [f"Written by pocketvlm for {NAMES[program]}: {command}", *notes]
    text = yaml.safe_dump(keys, sort_keys=False, allow_unicode=True, width=2**20)
    with whole_file(path) as file:
        file.write("".join(f"# {line}\n" for line in head).encode() + text.encode())
    return Emitted(str(path), command, written[0], written[1], bad, notes)


def _good(
    dataset: Dataset,
    settings: TuneSettings,
    program: Program,
    bad: dict[str, str],
    written: list[int],
    place: int,
    videos: list[str],
) -> Iterator[Sample]:
    """The samples that can be learnt from, each as often as an epoch sees it; the others are named, and so are those
    with videos."""
    for source in dataset.sources:
        times = int(source.weight)
        if times != source.weight:
            hint = "Weights are whole numbers there: samples are written several times."
            text = f"{NAMES[program]} has no place for the weight {source.weight} of {source.name}"
            raise ConfigError(text, hint=hint)
        for index in range(len(source)):
            try:
                sample = _checked(source.sample(index), settings, program)
            except SampleError as error:
                if settings.bad_samples == "stop" or isinstance(error, NoPlaceError):
                    raise
                logger.warning("left out: %s", error)
                bad[error.source] = str(error)
                continue
            written[place] += times
            videos += [sample.source] if _has_video(sample) else []
            yield from [sample] * times


def _has_video(sample: Sample) -> bool:
    contents = [one["content"] for one in sample.messages if isinstance(one.get("content"), list)]
    return any("video" in str(part.get("type")) for content in contents for part in content)


class NoPlaceError(SampleError):
    """A good sample says what another program has no place for."""


def _checked(sample: Sample, settings: TuneSettings, program: Program) -> Sample:
    if sample.options:
        text = f"{NAMES[program]} has no place for options of one sample: {', '.join(sample.options)}"
        raise NoPlaceError(sample.source, text, hint="Take the columns out, and give them to the whole run.")
    if settings.objective == "sft":
        return replace(sample, rejected=None)
    if sample.rejected is None:
        raise SampleError(sample.source, "it has no rejected answer to compare with", hint="Preferences have two.")
    return sample
