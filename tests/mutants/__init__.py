"""Faults that tests must notice: one change of one line at a time, and the tests that fail with it (`make mutants`)."""
