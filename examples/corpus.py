"""Grow a small corpus, load it with `datasets`, walk one bush of its tree.

python examples/corpus.py smollm2 runs/corpus
"""

import sys

from datasets import load_dataset

import regrow


def main(model: str, output: str, engine: str = "auto") -> None:
    summary = regrow.grow(
        model,
        output,
        shape=[4, 2, 2, 1],
        dialogues=16,
        topics=["volcanoes", "bread"],
        engine=engine,
        settings={"grow.encoder": "none" if engine == "dummy" else "minilm"},
    )
    print(summary.text())
    dialogues = load_dataset(output, split="train")
    nodes = load_dataset(output, "nodes", split="train")
    print(f"{len(dialogues)} dialogues, {len(nodes)} nodes, {sum(nodes['kept'])} of them kept")
    bush = dialogues[0]["node_ids"][0]
    for node in nodes:
        if node["kept"] and (node["id"] + "/").startswith(bush + "/"):
            print("  " * node["layer"], node["role"], "|", node["text"][:70].replace("\n", " "))


if __name__ == "__main__":
    main(*sys.argv[1:])
