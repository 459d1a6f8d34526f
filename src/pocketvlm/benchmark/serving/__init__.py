"""A server under load: requests that arrive as users send them → latencies, throughput and failures."""

from pocketvlm.errors import MissingExtraError

try:
    import aiohttp  # noqa: F401
except ModuleNotFoundError:
    raise MissingExtraError("aiohttp", "serve") from None
