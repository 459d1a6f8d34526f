"""What the engine asks of a runtime, and the runtimes that answer."""
