"""One file per task or family of tasks; a file placed here is found by itself.

See ``curves.py`` for the shortest complete example.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__: list[str] = []
