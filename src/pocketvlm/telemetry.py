"""Usage reports of the libraries that this package brings are off.

They are switched by variables of the environment that must be set before those libraries are imported; calling the
libraries afterwards is too late. `pocketvlm/__init__.py` runs this, so it comes before every other module of the
package, and processes that are started from here inherit it.
"""

from __future__ import annotations

import os

# Variable → the value that turns reports off. PyTorch, tokenizers and the others send none.
SWITCHES = {
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime: device id in the user's cache, looks up Microsoft's host
    "RAY_USAGE_STATS_ENABLED": "0",  # Ray: sizes of the cluster and libraries in use, every hour
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub: versions and the kind of terminal beside each request
}


def turn_off_reports() -> None:
    """Set every switch that the user has not set."""
    for variable, value in SWITCHES.items():
        os.environ.setdefault(variable, value)
