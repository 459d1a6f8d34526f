"""Bodies of OpenAI's and Ollama's API ↔ messages, options and answers."""
