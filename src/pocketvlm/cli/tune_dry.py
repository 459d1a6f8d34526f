"""What `pocketvlm tune --check` and `--plan` print: the samples as they would be learnt, and the memory of a step."""

from __future__ import annotations

import argparse
from typing import Any

from pocketvlm.cli.common import directory_of, progress_bars
from pocketvlm.cli.console import put, put_json, say
from pocketvlm.files import whole_file
from pocketvlm.training.settings import TuneSettings


def check(args: argparse.Namespace, samples: Any, settings: TuneSettings, options: dict[str, Any]) -> int:
    """The dry run: prints what was found, and writes a page to look at."""
    from pocketvlm.training.check import check as check_samples
    from pocketvlm.training.check import stretches
    from pocketvlm.training.check_page import check_page

    feed, processor = _feed(args, samples, settings, options)
    with progress_bars() as bars:
        total = len(samples)
        found = check_samples(feed.all(), lambda done: bars("Reading samples", done, total) if bars else None)
    args.out.mkdir(parents=True, exist_ok=True)
    page = args.out / "check.html"
    with whole_file(page) as file:
        file.write(check_page(found, processor.tokenizer, " ".join(args.data) or str(args.config)).encode())
    for text in found.bad.values():
        say(text)
    for file, names in samples.unused_columns().items():
        say(f"{file}: nothing is read from the columns {', '.join(names)}")
    if args.json:
        rows = found.statistics()
        put_json({"samples": found.good, "bad": found.bad, "statistics": rows, "page": str(page)})
        return int(bool(found.bad))
    for example in found.shown:
        put(f"{example.source}: what is learnt of it stands in [[ ]]")
        texts = stretches(example, processor.tokenizer)
        put("    " + "".join(f"[[{text}]]" if learnt else text for text, learnt, _ in texts).replace("\n", "\n    "))
    for name, row in found.statistics().items():
        put(f"{name}: " + ", ".join(f"{what} {value:g}" for what, value in row.items()))
    put(f"{found.good} samples can be learnt from, {len(found.bad)} cannot. To look at: {page}")
    return int(bool(found.bad))


def plan(args: argparse.Namespace, samples: Any, settings: TuneSettings, options: dict[str, Any]) -> int:
    """Prints the memory of a step."""
    from pocketvlm.api.loading import choose_device
    from pocketvlm.machine import memory_bytes
    from pocketvlm.training.plan import largest_batch, plan_memory, process_bytes

    directory, device = directory_of(args), choose_device(args.device)
    feed, _ = _feed(args, samples, settings, options)
    batch = largest_batch(feed.all(), settings)
    plan = plan_memory(directory.config, directory.image_config, settings, batch, device, process_bytes(device))
    memory, count = memory_bytes(device), len(batch.lengths)
    fits = plan.samples_in(memory, count)
    if args.json:
        sizes = {"samples": count, "tokens": len(batch.input_ids), "patches": len(batch.patches)}
        put_json({"bytes": {**vars(plan), "total": plan.total}, **sizes, "memory": memory, "samples_that_fit": fits})
        return 0
    for name, size in {**vars(plan), "total": plan.total}.items():
        put(f"{name:12} {size / 2**20:10,.0f} MiB")
    put(f"with {count} samples in a forward: {len(batch.input_ids)} tokens, {len(batch.patches)} patches")
    put(f"{memory / 2**30:.1f} GiB are there: up to {fits} such samples in a forward")
    return 0


def _feed(args: argparse.Namespace, samples: Any, settings: TuneSettings, options: dict[str, Any]) -> tuple[Any, Any]:
    """The samples as they would be learnt, and the processor."""
    from pocketvlm.processing.processor import Processor
    from pocketvlm.training.examples import ExampleEncoder
    from pocketvlm.training.feed import Feed

    directory = directory_of(args)
    processor = Processor.from_directory(directory.path, configs=directory.configs)
    encoder = ExampleEncoder(processor, max_tokens=settings.max_tokens, truncate=settings.truncate, options=options)
    return Feed(samples, encoder, pairs=settings.objective == "dpo", seed=settings.seed), processor
