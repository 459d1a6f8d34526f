"""One runtime at the published size, run as a process of its own so that its memory is its own.

python true_size_runtimes.py {torch,none,int8,int4} CHECKPOINT RESULT
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from parity.true_size import question

from pocketvlm.api.loading import load_runner
from pocketvlm.model.segments import Segment

TOKENS = 64
SCORED = 40  # prompt positions whose logits are compared


@torch.inference_mode()
def main(runtime: str, checkpoint: Path, result: Path) -> None:
    began = time.perf_counter()
    options = {"runtime": "torch"} if runtime == "torch" else {"runtime": "onnx", "quantization": runtime}
    runner = load_runner(checkpoint, **options)
    loaded = time.perf_counter() - began
    patches, views, ids = question(448)
    features = runner.encode_views(patches.numpy(), views)
    cache = runner.make_cache(1, len(ids) + TOKENS)
    rows = range(len(ids) - SCORED, len(ids))
    scores = runner.forward(runner.embed(ids.numpy(), features), runner.batch([Segment(len(ids))]), cache, rows)
    history = [scores[-1]]
    while len(history) < TOKENS:
        batch = runner.batch([Segment(1, cache.lengths[0])])
        x = runner.embed(history[-1].argmax().reshape(1), None)
        history.append(runner.forward(x, batch, cache, batch.lasts)[0])
    features, scores, logits = (torch.as_tensor(made) for made in (features, scores, np.stack(history)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    figures = {"load_s": loaded, "peak_gib": peak}
    out = {"features": features, "prompt": scores, "logits": logits, "ids": logits.argmax(-1), "figures": figures}
    torch.save(out, result)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
