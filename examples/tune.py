"""The whole chain from Python.

python examples/tune.py smollm2 my_data.jsonl runs/mine train.learning_rate=1e-4
"""

import sys

import yaml

import regrow


def main(model: str, data: str, output: str, *settings: str) -> None:
    keys = dict(item.split("=", 1) for item in settings)
    result = regrow.tune(model, data, output, settings={k: yaml.safe_load(v) for k, v in keys.items()})
    print(result.text())
    print(result.results["verdict"]["sentence"])


if __name__ == "__main__":
    main(*sys.argv[1:])
