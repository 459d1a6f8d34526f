"""Tools of the Model Context Protocol → answers about pictures, over stdio or HTTP."""

from pocketvlm.errors import MissingExtraError

try:
    import mcp  # noqa: F401
except ModuleNotFoundError:
    raise MissingExtraError("mcp", "mcp") from None
