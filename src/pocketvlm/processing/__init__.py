"""Pictures, videos and strings → `ModelInputs`."""
