"""Files of conversations to learn from → samples."""
