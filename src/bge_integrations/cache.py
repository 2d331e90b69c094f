"""The cache around any encoder; it lives in ``bge_integrations.wrappers.cache``."""

from .wrappers.cache import *  # noqa: F403
from .wrappers.cache import __all__ as __all__
