"""Tensor routines with a plain twin beside each fast one; nothing here knows about modules or checkpoints."""
