"""OpenAI's tool definitions → what may be called; the text of an answer → its calls."""
