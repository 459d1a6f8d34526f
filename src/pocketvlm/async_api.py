"""`AsyncVLM` under the name it was first published by; it lives in `pocketvlm.api.async_vlm`."""

from pocketvlm.api.async_vlm import AsyncVLM

__all__ = ["AsyncVLM"]
