"""The decoder: full and linear attention, norms, rotary positions."""
