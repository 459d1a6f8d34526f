"""A checkpoint → files for llama.cpp."""
