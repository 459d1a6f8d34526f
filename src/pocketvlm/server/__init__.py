"""HTTP requests → answers of the engine: the APIs of OpenAI and Ollama, a page, health and metrics."""

from pocketvlm.errors import need

need("fastapi", "fastapi", "serve")
need("uvicorn", "fastapi", "serve")
