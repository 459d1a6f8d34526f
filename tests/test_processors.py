"""The numbers hold on other processors than this one: the same tests under the kernels that those would take.

A few of them run with all tests; `make test-cpus` runs all that compute, under every setting.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pocketvlm.machine import processor_flags

TESTS = Path(__file__).parent
ALL = ("parity", "kernels", "model", "engine", "export")
# One of each kind that has a bound on numbers, in seconds.
FEW = (
    "kernels/test_gated_delta_rule.py::test_error_is_at_most_twice_the_recurrence_in_fp32_against_fp64",
    "kernels/test_causal_conv1d.py::test_error_is_at_most_twice_the_library_convolution_against_fp64",
    "kernels/test_cpu_linear.py::test_packed_model_keeps_the_invariants",
    "model/test_decoder.py::test_packed_equals_separate",
    "model/test_vision_tower.py::test_views_of_any_shapes_and_rates_together_equal_separate",
    "parity/test_model_parity.py::test_decoder_equals_the_reference_layer_by_layer",
    "parity/test_model_parity.py::test_tower_equals_the_reference_part_by_part",
    "engine/test_onnx_runner.py::test_quantised_bundles_stay_near",
)


@dataclass(frozen=True)
class Setting:
    """How a process is told to take other kernels.

    Attributes:
        needs: without this instruction set, which Linux calls so, the setting changes nothing.
    """

    environment: dict[str, str]
    arguments: tuple[str, ...] = ()
    needs: str = ""


SETTINGS = {
    "PyTorch without vector instructions": Setting({"ATEN_CPU_CAPABILITY": "default"}),
    "PyTorch with AVX2 at most": Setting({"ATEN_CPU_CAPABILITY": "avx2"}, needs="avx512f"),
    "oneDNN with AVX2 at most": Setting({"ONEDNN_MAX_CPU_ISA": "AVX2"}, needs="avx512f"),
    "oneDNN with AVX-512 and no more": Setting({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, needs="avx512_vnni"),
    "a compiler that fails, so no compiled operators": Setting({"CXX": "false"}, needs="fma"),
    "compiled operators with AVX2 at most": Setting({"POCKETVLM_INSTRUCTIONS": "avx2"}, needs="avx512_vnni"),
    "1 thread": Setting({"OMP_NUM_THREADS": "1"}),
    "4 threads": Setting({"OMP_NUM_THREADS": "4", "OMP_WAIT_POLICY": "passive"}),
    "products that round in other places": Setting({}, ("-p", "helpers.other_rounding")),
}


@dataclass
class Outcome:
    status: int
    summary: str
    output: str = field(repr=False)


def run_tests(setting: Setting, *tests: str) -> Outcome:
    """In a process of its own, since PyTorch chooses its kernels when it is imported."""
    path = os.pathsep.join(p for p in (str(TESTS), os.environ.get("PYTHONPATH", "")) if p)
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": path, **setting.environment}
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_ADDOPTS"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "--tb=short", "-p", "no:cacheprovider", *setting.arguments]
    command += [str(TESTS / test) for test in tests]
    done = subprocess.run(command, cwd=TESTS.parent, env=environment, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()[-300:] or "no output"]
    return Outcome(done.returncode, lines[-1].strip("= "), done.stdout + done.stderr)


def passed(outcome: Outcome) -> int:
    found = re.search(r"(\d+) passed", outcome.summary)
    return int(found[1]) if found else 0


def test_a_few_numbers_hold_on_the_least_of_processors_and_where_products_round_in_other_places() -> None:
    least = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "AVX2", "CXX": "false", "OMP_NUM_THREADS": "4"}
    least["OMP_WAIT_POLICY"] = "passive"  # four threads that spin on two busy cores take three times as long
    outcome = run_tests(Setting(least, SETTINGS["products that round in other places"].arguments), *FEW)
    assert outcome.status == 0, outcome.output[-3000:]
    assert passed(outcome) >= len(FEW)


@pytest.mark.cpus
@pytest.mark.parametrize("name", SETTINGS)
def test_all_numbers_hold_under(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    setting = SETTINGS[name]
    outcome = run_tests(setting, *ALL)
    changes = not setting.needs or setting.needs in processor_flags()
    note = "" if changes else f" (changes nothing here: this processor has no {setting.needs})"
    with capsys.disabled():
        print(f"\n{name}{note}: {outcome.summary}", flush=True)
    assert outcome.status == 0, outcome.output[-6000:]
    assert passed(outcome) > 0
