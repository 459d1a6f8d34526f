"""pocketvlm: run, measure and take apart the small vision-language model MiniCPM-V 4.6 on one machine.

import pocketvlm
vlm = pocketvlm.load("nano")
print(vlm.ask("receipt.png", "What is the total?"))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pocketvlm.errors import (
    CheckpointError,
    ConfigError,
    EngineError,
    MediaError,
    MissingExtraError,
    PocketVLMError,
    PromptError,
)
from pocketvlm.telemetry import turn_off_reports

if TYPE_CHECKING:
    from pocketvlm.api.answers import Answer, Delta, TokenLogprob, Usage
    from pocketvlm.api.view_plan import ViewPlan, plan, plan_image
    from pocketvlm.api.vlm import VLM, load
    from pocketvlm.engine.config import EngineConfig
    from pocketvlm.engine.sampling.params import SamplingParams
    from pocketvlm.grammar.structured_outputs import StructuredOutputs
    from pocketvlm.tools.calls import ToolCall

__version__ = "0.1.0"

turn_off_reports()  # before anything imports the libraries that would send them

__all__ = [
    "VLM",
    "Answer",
    "CheckpointError",
    "ConfigError",
    "Delta",
    "EngineConfig",
    "EngineError",
    "MediaError",
    "MissingExtraError",
    "PocketVLMError",
    "PromptError",
    "SamplingParams",
    "StructuredOutputs",
    "TokenLogprob",
    "ToolCall",
    "Usage",
    "ViewPlan",
    "__version__",
    "load",
    "plan",
    "plan_image",
]

# Imported on first use: torch takes seconds, and `pocketvlm --help` needs none of it.
_LAZY = {
    **dict.fromkeys(("VLM", "load"), "pocketvlm.api.vlm"),
    **dict.fromkeys(("ViewPlan", "plan", "plan_image"), "pocketvlm.api.view_plan"),
    **dict.fromkeys(("Answer", "Delta", "TokenLogprob", "Usage"), "pocketvlm.api.answers"),
    "EngineConfig": "pocketvlm.engine.config",
    "SamplingParams": "pocketvlm.engine.sampling.params",
    "StructuredOutputs": "pocketvlm.grammar.structured_outputs",
    "ToolCall": "pocketvlm.tools.calls",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'pocketvlm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
