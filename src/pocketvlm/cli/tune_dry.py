"""What `pocketvlm tune --check` and `--plan` print: the samples as they would be learnt, and the memory of a step."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from typing import Any

from pocketvlm.cli.common import directory_of, progress_bars
from pocketvlm.cli.console import put, put_json, say
from pocketvlm.errors import ConfigError, PocketVLMError
from pocketvlm.files import whole_file
from pocketvlm.training.settings import TuneSettings


def check(args: argparse.Namespace, sets: Sequence[Any], settings: TuneSettings, options: dict[str, Any]) -> int:
    """The dry run: prints what was found, and writes a page to look at.

    Args:
        sets: the samples that are learnt from, and those that are measured with where there are some.
    """
    from pocketvlm.training.check import check as check_samples
    from pocketvlm.training.check import stretches
    from pocketvlm.training.check_page import check_page

    feeds, processors = zip(*(_feed(args, samples, settings, options) for samples in sets), strict=True)
    processor = processors[0]
    with progress_bars() as bars:
        total = sum(len(samples) for samples in sets)
        every = itertools.chain.from_iterable(feed.all() for feed in feeds)
        found = check_samples(every, lambda done: bars("Reading samples", done, total) if bars else None)
    page, is_new = args.out / "check.html", not args.out.exists()
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{args.out} cannot be made ({error.strerror})", hint="Name another by --out.") from None
    try:
        with whole_file(page) as file:
            file.write(check_page(found, processor.tokenizer, " ".join(args.data) or str(args.config)).encode())
    except PocketVLMError:
        if is_new:
            args.out.rmdir()
        raise
    for text in found.bad.values():
        say(text)
    if args.json:
        rows = found.statistics()
        put_json({"samples": found.good, "cut": found.cut, "bad": found.bad, "statistics": rows, "page": str(page)})
        return int(bool(found.bad))
    for example in found.shown:
        put(f"{example.source}: what is learnt of it stands in [[ ]]")
        texts = stretches(example, processor.tokenizer)
        put("    " + "".join(f"[[{text}]]" if learnt else text for text, learnt, _ in texts).replace("\n", "\n    "))
    for name, row in found.statistics().items():
        put(f"{name}: " + ", ".join(f"{what} {value:g}" for what, value in row.items()))
    put(f"{found.counts} To look at: {page}")
    return int(bool(found.bad))


def plan(args: argparse.Namespace, samples: Any, settings: TuneSettings, options: dict[str, Any]) -> int:
    """Prints the memory of a step."""
    from pocketvlm.api.torch_devices import choose_device, memory_of
    from pocketvlm.training.plan import device_elsewhere, is_here, largest_batch, plan_memory, process_bytes

    directory, gib = directory_of(args), args.memory
    device = choose_device(args.device) if gib is None else device_elsewhere(args.device)
    feed, _ = _feed(args, samples, settings, options)
    largest = largest_batch(feed.all(), settings)
    process = process_bytes(device, settings)
    plan = plan_memory(directory.config, directory.image_config, settings, largest, device, process)
    batch, memory = largest.batch, memory_of(device) if gib is None else round(gib * 2**30)
    count, tokens, patches = len(batch.lengths), len(batch.input_ids), len(batch.patches)
    fits = plan.samples_in(memory, count)
    limits = {"micro_tokens": fits * -(-tokens // count), "micro_patches": fits * -(-patches // count)}
    limits = {name: limit for name, limit in limits.items() if limit}  # of text alone there are no patches
    if not is_here(device):
        say("the card is not here: what views and tokens keep is counted by the operators of the CPU, in bfloat16")
    if args.json:
        sizes = {"samples": count, "tokens": tokens, "patches": patches}
        put_json(
            {
                "bytes": {**vars(plan), "total": plan.total},
                **sizes,
                "memory": memory,
                "samples_that_fit": fits,
                **limits,
            }
        )
        return 0
    for name, size in {**vars(plan), "total": plan.total}.items():
        put(f"{name:12} {size / 2**20:10,.0f} MiB")
    put(f"with {count} samples in a forward: {tokens} tokens, {patches} patches")
    given = " ".join(f"--{name.replace('_', '-')} {limit}" for name, limit in limits.items())
    many = f"up to {fits} such samples in a forward ({given})" if fits else "not even one such sample fits"
    put(f"{memory / 2**30:.1f} GiB are there: {many}" if gib is None else f"of {gib:g} GiB: {many}")
    return 0


def _feed(args: argparse.Namespace, samples: Any, settings: TuneSettings, options: dict[str, Any]) -> tuple[Any, Any]:
    """The samples as they would be learnt, and the processor."""
    from pocketvlm.training.examples import ExampleEncoder, training_processor
    from pocketvlm.training.feed import Feed

    processor = training_processor(directory_of(args))
    encoder = ExampleEncoder(processor, max_tokens=settings.max_tokens, truncate=settings.truncate, options=options)
    return Feed(samples, encoder, pairs=settings.objective == "dpo", seed=settings.seed), processor
