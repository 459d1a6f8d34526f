"""transformers as a peer."""

from __future__ import annotations

from types import ModuleType

from pocketvlm.errors import MissingExtraError
from pocketvlm.lenient_imports import lenient_registrations


def import_transformers() -> ModuleType:
    """The package, or an error that says how to get it."""
    try:
        with lenient_registrations():
            import torchvision  # noqa: F401  # here, or transformers would import it by itself
            import transformers
    except ImportError:
        raise MissingExtraError("transformers with torchvision", "reference") from None
    transformers.logging.set_verbosity_error()
    return transformers
