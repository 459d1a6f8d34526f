"""Linear layers of a CPU: weights packed once, products by the fastest library that is there."""
