"""Messages → the prompt and its token ids."""
