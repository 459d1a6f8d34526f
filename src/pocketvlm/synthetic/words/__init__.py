"""Words and values to print."""
