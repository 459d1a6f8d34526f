"""RGB pixels → views, and views → uint8 patches."""
