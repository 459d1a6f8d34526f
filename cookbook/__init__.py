"""Recipes of fine-tuning that run on a laptop, and what draws their samples."""
