"""A base in 4 bits, and what its packages do when they are imported."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.training import sample

from pocketvlm.lenient_imports import offline
from pocketvlm.machine import peak_resident_bytes
from pocketvlm.model.checkpoint import load_model
from pocketvlm.model.hub import resolve
from pocketvlm.processing.processor import Processor
from pocketvlm.training.batches import Batch
from pocketvlm.training.examples import ExampleEncoder
from pocketvlm.training.losses import answer_losses
from pocketvlm.training.run import prepare
from pocketvlm.training.settings import TuneSettings


def test_a_base_in_4_bits_is_measured_and_goes_on_to_learn_on_a_cpu_with_bfloat16(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    modules = pytest.importorskip("bitsandbytes.nn.modules")
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: True)
    nano = resolve("nano")
    model = load_model(nano)
    prepare(model, TuneSettings(method="qlora"))
    encoder = ExampleEncoder(Processor.from_directory(nano.path), options={"max_slice_nums": 1})
    batch = Batch.of([encoder(sample())])
    learnt = answer_losses(model.train(), batch)
    with torch.no_grad():
        measured = answer_losses(model.eval(), batch)
    again = answer_losses(model.train(), batch)
    assert torch.allclose(measured, learnt, rtol=1e-3)
    assert torch.equal(again, learnt)


def test_bitsandbytes_downloads_nothing_when_it_is_imported(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    (tmp_path / "kernels.py").write_text("def get_kernel(*_, **__): print('downloads')\n", encoding="utf-8")
    program = "from pocketvlm.training.lora import import_peft; import_peft(); import bitsandbytes"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == ""
    assert "kernels" not in done.stderr


def test_a_package_that_is_hidden_comes_back() -> None:
    log = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level, there = log.level, sys.modules.get("kernels")
    with pytest.raises(ModuleNotFoundError), offline():
        __import__("kernels")
    assert (log.level, sys.modules.get("kernels")) == (level, there)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have no such peak to inherit")
def test_a_new_process_does_not_begin_with_the_peak_of_the_one_that_started_it() -> None:
    program = "from pocketvlm.machine import peak_resident_bytes; print(peak_resident_bytes())"
    large = torch.ones(300 * 2**20, dtype=torch.uint8)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 200 * 2**20 < large.nbytes < peak_resident_bytes()
