"""Shapes, pairs of pictures and clips."""
