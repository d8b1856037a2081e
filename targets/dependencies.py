"""Optional packages: imported when they are needed, and named with their extra when they are missing."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from kdpipe.targets.errors import MissingDependencyError


def require(module: str, extra: str) -> ModuleType:
    """Import and return an optional module.

    Args:
        module: dotted name, such as "onnxruntime".
        extra: the extra of kdpipe that installs it.

    Raises:
        MissingDependencyError: it is not installed, or one of its own shared libraries is missing.
    """
    package = module.split(".")[0]
    try:
        return import_module(module)
    except ModuleNotFoundError:
        raise MissingDependencyError(
            f"the package {package} is not installed", remedy=f'pip install "kdpipe[{extra}]"'
        ) from None
    except ImportError as error:
        raise MissingDependencyError(
            f"the package {package} is installed but can't be imported ({error})",
            remedy=f'Install it again: pip install --force-reinstall "kdpipe[{extra}]"',
        ) from None
