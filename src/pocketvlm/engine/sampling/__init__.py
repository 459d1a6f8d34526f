"""Scores → tokens."""
