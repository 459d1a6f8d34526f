"""Runs of ms-swift and LLaMA-Factory: their settings files are read here, and ours are written for them."""
