"""Imports that an interrupt cannot cut in half."""

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
