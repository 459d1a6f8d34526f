"""Which runtime a model gets, with which numbers, and how it is made ready there."""

from __future__ import annotations

import logging
import os
import shutil
import weakref
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp

from pocketvlm.api.gpu import has_gpu
from pocketvlm.api.operators import choose_operators, describe, measured
from pocketvlm.api.tile_trial import try_tiles
from pocketvlm.bundle import PRESETS, Manifest, Quantization, parse_quantization
from pocketvlm.config import ModelConfig, check_device_name, check_dtype_name, check_runtime_name
from pocketvlm.engine.runners.base import Runner
from pocketvlm.engine.runners.onnx_runner import ONNXRunner, import_onnxruntime
from pocketvlm.errors import BundleCacheError, ConfigError, OutputError, PocketVLMError, need
from pocketvlm.kernels.onnx_ops import library
from pocketvlm.model.directory import ModelDirectory
from pocketvlm.model.hub import resolve
from pocketvlm.model.weight_files import count_parameters

logger = logging.getLogger(__name__)
Progress = Callable[[str, int, int], None]

# Models from this size on get 8 bits: they keep the answers, and 4 bits are a choice. Smaller ones are as fast without.
LARGE = 100_000_000
AUTO_QUANTIZATION, SMALL_QUANTIZATION = "int8", "none"


def load_runner(
    model: str | Path | ModelDirectory,
    *,
    device: str = "auto",
    runtime: str = "auto",
    quantization: str = "auto",
    dtype: str = "auto",
    progress: Progress | None = None,
) -> Runner:
    """Make the model (a checkpoint or a bundle) ready; the options are those of `pocketvlm.load`."""
    check_runtime_name(runtime)
    if not isinstance(quantization, str) or quantization != "auto":
        parse_quantization(quantization)
    directory = resolve(model)
    check_dtype_name(dtype)
    on_cpu = check_device_name(device) == "cpu" or (device == "auto" and runtime != "torch" and not has_gpu())
    if _is_for_onnx(directory, on_cpu, runtime, quantization, dtype):
        if device not in ("auto", "cpu") or dtype not in ("auto", "float32"):
            raise ConfigError(
                f"runtime='onnx' runs on the CPU in float32 between its products, not with device={device!r}, "
                f"dtype={dtype!r}",
                hint="Leave both at auto, or use runtime='torch'.",
            )
        if directory.kind != "bundle" and (runtime, dtype, quantization) == ("auto", "float32", "auto"):
            quantization = "none"
        return _onnx_runner(directory, quantization, progress)
    if directory.kind == "bundle":
        raise ConfigError(f"{directory.path} is a bundle, which only runtime='onnx' runs")
    if quantization not in ("auto", "none"):
        raise ConfigError(
            f"quantization={quantization!r} is for runtime='onnx' on the CPU", hint="Leave it at auto here."
        )
    return _torch_runner(directory, device, dtype, progress)


def _onnx_runner(directory: ModelDirectory, quantization: str, progress: Progress | None) -> Runner:
    config = directory.config if directory.adapter is None else None  # an adapter may untie heads
    try:
        return ONNXRunner(ready_bundle(directory, quantization, progress), config=config)
    except (BundleCacheError, OutputError) as error:
        if _is_large(directory):
            raise
        logger.info("%s: the bundle is made for this process alone", error)
        try:
            return _temporary_runner(directory, quantization, progress, config)
        except (OSError, OutputError) as second:
            logger.info("nor can it be made in a temporary folder: %s", second)
        raise


def _temporary_runner(
    directory: ModelDirectory, quantization: str, progress: Progress | None, config: ModelConfig | None
) -> Runner:
    """A runner of a bundle in a folder that goes with it."""
    from pocketvlm.export.onnx.bundle import write_bundle

    chosen, report = _wanted(directory, quantization, progress)
    folder = Path(mkdtemp(prefix="pocketvlm-"))
    with ExitStack() as stack:
        stack.callback(_remove_own, folder, os.getpid())
        write_bundle(directory, folder / "bundle", chosen, report, choose_operators(chosen))
        runner = ONNXRunner(folder / "bundle", config=config)
        weakref.finalize(runner, stack.pop_all().close)
    return runner


def _remove_own(folder: Path, process: int) -> None:
    if os.getpid() == process:  # not in one that was forked, when that ends
        shutil.rmtree(folder, ignore_errors=True)


def _torch_runner(directory: ModelDirectory, device: str, dtype: str, progress: Progress | None) -> Runner:
    need("torch", "torch", "torch")
    # Here, since an import of PyTorch takes as long as an answer of ONNX Runtime.
    from pocketvlm.api.torch_devices import choose_device, choose_dtype
    from pocketvlm.engine.runners.torch_runner import TorchRunner
    from pocketvlm.model.checkpoint import load_model

    target = choose_device(device)
    report = (lambda done, total: progress("Loading weights", done, total)) if progress else None
    number_type = choose_dtype(dtype, target)
    return TorchRunner(load_model(directory, dtype=number_type, device=target, cpu_kernels=True, progress=report))


def describe_choice(directory: ModelDirectory) -> dict[str, str]:
    """What `load` makes of the model when every option is left at auto: `runs_with`, and with quantised products on a
    CPU what they take here with compiled and with standard operators, `operators`."""
    if directory.kind == "bundle":
        manifest = Manifest.read(directory.path)
        return {"runs_with": f"ONNX Runtime, {manifest.quantization}, {manifest.operators}"}
    if not _is_for_onnx(directory, not has_gpu(), "auto", "auto", "auto"):
        from pocketvlm.api.torch_devices import choose_device, choose_dtype

        device = choose_device("auto")
        return {"runs_with": f"PyTorch on {device.type}, {str(choose_dtype('auto', device)).removeprefix('torch.')}"}
    if not _can_make_bundles():
        return {"runs_with": "nothing that is installed: pip install -U pocketvlm"}
    chosen = _auto_quantization(directory)
    operators = choose_operators(chosen)
    compiled = library.compiled() if chosen.suits_compiled else None
    if compiled is None:
        return {"runs_with": f"ONNX Runtime, {chosen}, {operators}"}
    kind = f" ({library.kind_of(compiled)})" if operators.has_compiled else ""
    found = {"runs_with": f"ONNX Runtime, {chosen}, {operators}{kind}"}
    if not library.is_named():
        with suppress(Exception):  # of ONNX Runtime: the library does not load, so standard operators were chosen
            found["operators"] = describe(measured(chosen, compiled))
    return found


def _is_for_onnx(directory: ModelDirectory, is_on_cpu: bool, runtime: str, quantization: str, dtype: str) -> bool:
    if runtime != "auto":
        return runtime == "onnx"
    if directory.kind == "bundle" or quantization not in ("auto", "none"):
        return True
    if not (is_on_cpu and dtype in ("auto", "float32")):
        return False
    if find_spec("torch") is None:
        return True
    if dtype != "auto" or not _can_make_bundles():
        return False
    if _is_large(directory):
        return quantization == "auto"  # in fp32 the checkpoint runs as it is, and takes no place in the cache
    return directory.adapter is None  # PyTorch merges it, and can as well answer then


def _is_large(directory: ModelDirectory) -> bool:
    return count_parameters(directory.path) >= LARGE


def _can_make_bundles() -> bool:
    """Whether all that this takes is here: another program may have brought an older ONNX Runtime."""
    if find_spec("onnxruntime") is None or find_spec("onnx_ir") is None:
        return False
    with suppress(PocketVLMError):
        import_onnxruntime()
        return True
    return False


def _auto_quantization(directory: ModelDirectory) -> Quantization:
    """The scores of a 4-bit head are made exact from the embeddings, so a head of its own gets 8 bits."""
    if not _is_large(directory):
        return PRESETS[SMALL_QUANTIZATION]
    chosen = PRESETS[AUTO_QUANTIZATION]
    return chosen if directory.config.text.tie_word_embeddings else replace(chosen, head="int8")


def ready_bundle(model: str | Path | ModelDirectory, quantization: str, progress: Progress | None = None) -> Path:
    """The bundle that `load` would run for a checkpoint (made now, if need be) or a bundle."""
    import_onnxruntime()  # before minutes are spent on a bundle that nothing could run
    from pocketvlm.export.bundle_cache import cached_bundle  # brings filelock

    directory = resolve(model)
    if directory.kind == "bundle":
        made = Manifest.read(directory.path)
        if quantization != "auto" and parse_quantization(quantization) != made.quantization:
            raise ConfigError(f"the bundle {directory.path} has {made.quantization}, not quantization={quantization!r}")
        if made.operators.has_compiled:
            try_tiles()
        return directory.path
    chosen, report = _wanted(directory, quantization, progress)
    return cached_bundle(directory, chosen, report, choose_operators(chosen))


def _wanted(
    directory: ModelDirectory, quantization: str, progress: Progress | None
) -> tuple[Quantization, Callable[[int, int], None] | None]:
    """What a bundle is to be, and what is told of its making."""
    chosen = parse_quantization(quantization) if quantization != "auto" else _auto_quantization(directory)
    adapted = "" if directory.adapter is None else f" with {directory.adapter.name}"
    what = f"Preparing {directory}{adapted} for this CPU (once)"
    return chosen, (lambda done, total: progress(what, done, total)) if progress else None
