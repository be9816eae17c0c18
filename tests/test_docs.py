"""The docs must not drift from the code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_recipe_reference_is_up_to_date():
    done = subprocess.run(
        [sys.executable, "scripts/gen_reference.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_commands_in_the_docs_exist():
    import typer.main

    from regrow.cli import build_app

    group = typer.main.get_command(build_app())
    known = set(group.commands)
    for page in DOCS:
        text = page.read_text(encoding="utf-8")
        for block in re.findall(r"```(?:bash|sh|console)\n(.*?)```", text, re.S):
            for line in block.split("\n"):
                found = re.match(r"\s*(?:\$ )?regrow ([a-z-]+)(.*)", line.split("#")[0])
                if not found:
                    continue
                name, rest = found.groups()
                assert name in known, f"{page}: no command '{name}'"
                command = group.commands[name]
                if inner := getattr(command, "commands", None):  # `regrow probe mastery ...`
                    word, _, rest = rest.strip().partition(" ")
                    assert word in inner, f"{page}: no command '{name} {word}'"
                    name, command = f"{name} {word}", inner[word]
                options = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
                for option in re.findall(r"(?:^|\s)(--[a-z][a-z-]*|-[a-z])(?=[\s=]|$)", rest):
                    assert option in options | {"--help"}, f"{page}: `regrow {name}` has no option {option}"


def test_links_between_pages_resolve():
    for page in DOCS:
        for target in re.findall(
            r"\]\(([^)#\s]+\.(?:md|png|svg|yaml|py))(?:#[^)]*)?\)", page.read_text(encoding="utf-8")
        ):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page}: {target}"


def test_recipe_keys_named_in_the_docs_exist():
    from regrow.recipe import Recipe, _known_keys

    sections = set(Recipe.model_fields)
    for page in DOCS:
        for key in re.findall(r"--set ([a-z_]+(?:\.[a-z_]+)+)=", page.read_text(encoding="utf-8")):
            path = key.split(".")
            if path[0] in sections:
                assert path[-1] in _known_keys(path[:-1]), f"{page}: no recipe key {key}"
