"""Run the example notebook from top to bottom and keep what its cells show.

    python scripts/execute_notebook.py

Needs nbformat, nbclient and ipykernel (``pip install nbformat nbclient ipykernel``). Progress and warnings (what goes
to stderr) are left out of the file, and paths are made relative: they hold names and times of this machine.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

NOTEBOOK = Path(__file__).resolve().parents[1] / "examples/notebook.ipynb"


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    import nbclient
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = nbclient.NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": folder}})
        client.execute()
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)
            if cell.cell_type == "code":
                shown = json.dumps([o for o in cell.outputs if o.get("name") != "stderr"])
                shown = shown.replace(f"{folder}/", "").replace(str(Path.home()), "~")
                cell.outputs = nbformat.from_dict(json.loads(shown))
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()
