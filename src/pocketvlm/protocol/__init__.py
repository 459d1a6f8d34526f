"""OpenAI's bodies ↔ messages, options and answers."""
