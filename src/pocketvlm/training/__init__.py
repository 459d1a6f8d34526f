"""Fine-tuning: data → examples → packed batches → losses → steps → adapters and checkpoints."""

from pocketvlm.errors import need

need("torch", "torch", "tune")
