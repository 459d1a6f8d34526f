"""HTTP requests → answers of the engine: the APIs of OpenAI and Ollama, a page, health and metrics."""

from importlib.util import find_spec

from pocketvlm.errors import MissingExtraError

try:
    _found = find_spec("fastapi") is not None and find_spec("uvicorn") is not None
except ModuleNotFoundError:
    _found = False
if not _found:
    raise MissingExtraError("fastapi", "serve")
