"""open_clip, timm and lightly import torchvision for image transforms that these tests never run; this torch has none.

`import_open_clip` and `import_without` stand a placeholder in its place for the length of the import, and take it away
again.
"""

import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _Anything(type):
    """A class whose attributes are strings of their own names."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _Placeholder(ModuleType):
    __path__ = ()

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name, (), {})


class _Finder(MetaPathFinder, Loader):
    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.split(".")[0] == "torchvision" else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Placeholder(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""


def import_open_clip() -> tuple[ModuleType, ModuleType]:
    """The modules open_clip and timm."""
    import_without("open_clip")
    return sys.modules["open_clip"], sys.modules["timm"]


def import_without(*names: str) -> list[ModuleType]:
    """These modules, imported while the placeholder stands in torchvision's place."""
    import transformers  # noqa: F401  # looks for torchvision too, and must see that there is none

    if missing := [name for name in names if name not in sys.modules]:
        finder = _Finder()
        sys.meta_path.insert(0, finder)
        try:
            for name in missing:
                importlib.import_module(name)
        finally:
            sys.meta_path.remove(finder)
            for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
                del sys.modules[name]
    return [sys.modules[name] for name in names]
