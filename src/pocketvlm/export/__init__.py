"""Models → files of other programs."""
