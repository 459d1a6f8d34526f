"""Tensors → tensors: the model, its cache and its checkpoints, in PyTorch."""
