"""A checkpoint → files for llama.cpp."""

from pocketvlm.errors import need

need("torch", "torch", "gguf")
