"""Measuring models: tasks with known answers, published scores, and a harness that asks a model or an endpoint."""
