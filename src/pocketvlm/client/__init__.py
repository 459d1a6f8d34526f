"""Endpoints with OpenAI's API, as one who asks sees them: conversations → requests, streams → deltas."""
