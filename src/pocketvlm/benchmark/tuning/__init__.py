"""Steps of fine-tuning, here and by transformers + peft: the same samples, ranks, layers and numbers on both sides.

`documents` makes the samples, `contenders` the two that learn, `run` lets them take turns.
"""
