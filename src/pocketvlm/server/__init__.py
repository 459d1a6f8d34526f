"""HTTP requests → answers of the engine: OpenAI's API, health and metrics."""

from pocketvlm.errors import MissingExtraError

try:
    import fastapi as _fastapi
    import uvicorn as _uvicorn
except ImportError as error:
    raise MissingExtraError(error.name or "fastapi", "serve") from None

del _fastapi, _uvicorn
