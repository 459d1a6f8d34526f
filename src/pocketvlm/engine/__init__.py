"""Requests → tokens: sampling and generation. Ids and tensors only, never strings."""
