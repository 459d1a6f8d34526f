"""The vision tower, early compression and the merger."""
