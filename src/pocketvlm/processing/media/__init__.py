"""A path, bytes or URL → RGB pixels, within limits."""
