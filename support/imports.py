"""Imports that an interrupt cannot cut in half, and the mending of those that it did.

Python drops a package whose import is interrupted, but keeps those of its modules that were
finished. The next import finds these, and does not name them in the new package: `aiohttp.client`
is loaded, and yet `aiohttp` has no attribute `client`. Some packages cannot be imported again at
all. Source: "The import system", section "Submodules", in the Python language reference.
"""

from __future__ import annotations

import importlib
import sys
import threading


def import_whole(*names: str) -> None:
    """Import modules in a thread, and wait for it; those that are there already cost nothing.

    The interrupt button stops the main thread only. In there it would leave half of numpy behind, which no second
    import mends. Here the import goes on, and whoever imports the module next waits until it is whole.
    Raises what an import raises.
    """
    if all(name in sys.modules for name in names):
        return
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for name in names:
                importlib.import_module(name)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def name_submodules() -> list[str]:
    """Give each loaded package the attributes that an interrupted import left out.

    Returns the full names of the modules that were added to their packages, sorted. A name that
    the package already uses for something else is left alone.
    """
    added = []
    for name, module in sorted(sys.modules.copy().items()):
        parent, _, own = name.rpartition(".")
        package = sys.modules.get(parent) if parent else None
        if module is not None and package is not None and own not in vars(package):
            setattr(package, own, module)
            added.append(name)
    return added
