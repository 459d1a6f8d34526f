"""HTTP requests → answers of the engine: OpenAI's API, health and metrics."""

from pocketvlm.errors import MissingExtraError

try:
    import fastapi  # noqa: F401
    import uvicorn  # noqa: F401
except ModuleNotFoundError:
    raise MissingExtraError("fastapi or uvicorn", "serve") from None
