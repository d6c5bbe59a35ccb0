"""Pictures that pages outside the notebooks show: taken from a notebook's stored outputs, never drawn apart.

python -m tests.tools.pictures
"""

from __future__ import annotations

import base64
from pathlib import Path

import nbformat

from tests.tools.isolation import NOTEBOOKS

# The picture's file below notebooks/, the chapter, and how the cell begins that draws it.
PICTURES = {"pictures/one_bad_neighbour.png": ("01_event_loop", "async def ten_downloads(")}


def stored(chapter: str, start: str) -> bytes:
    """The PNG that the one cell of ``chapter`` which begins with ``start`` has stored.

    Raises LookupError if there is no such cell or no picture in it.
    """
    nb = nbformat.read(NOTEBOOKS / f"{chapter}.ipynb", as_version=4)
    for cell in nb.cells:
        if cell.cell_type == "code" and cell.source.startswith(start):
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    return base64.b64decode(output.data["image/png"])
    raise LookupError(f"{chapter} has no cell that begins with {start!r} and shows a picture.")


def write_pictures() -> list[Path]:
    """Write every picture anew; returns the files."""
    for name, (chapter, start) in PICTURES.items():
        path = NOTEBOOKS / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(stored(chapter, start))
    return [NOTEBOOKS / name for name in PICTURES]


if __name__ == "__main__":
    print("\n".join(str(path.name) for path in write_pictures()))
