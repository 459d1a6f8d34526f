"""HTTP requests → answers of the engine: OpenAI's API, health and metrics."""
