"""The demo's data: questions and answers about Python's standard library, made at run time from its docstrings."""

from __future__ import annotations

import importlib
import inspect
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from regrow.errors import DataError
from regrow.rows.writers import write_json_lines

Kind = Literal["purpose", "name", "signature", "default", "exception"]

# Modules whose docstrings are prose, whose import does nothing, and that are the same on every system.
MODULES = (
    "argparse", "ast", "base64", "bisect", "calendar", "cmath", "collections", "colorsys", "configparser",
    "contextlib", "copy", "csv", "datetime", "decimal", "difflib", "dis", "email.utils", "filecmp", "fnmatch",
    "fractions", "functools", "glob", "graphlib", "gzip", "heapq", "html", "inspect", "ipaddress", "itertools",
    "json", "keyword", "linecache", "logging", "lzma", "math", "mimetypes", "numbers", "operator",
    "pickletools", "pkgutil", "pprint", "queue", "quopri", "random", "re", "reprlib", "sched", "secrets",
    "shlex", "shutil", "statistics", "string", "struct", "symtable", "tempfile", "textwrap", "timeit",
    "tokenize", "traceback", "unicodedata", "urllib.parse", "uuid", "warnings", "weakref", "zipfile", "zlib",
)  # fmt: skip

QUESTIONS: dict[Kind, tuple[str, ...]] = {
    "purpose": (
        "What does `{name}` do in Python?",
        "In Python's `{module}` module, what is `{short}` for?",
        "Explain in one sentence what `{name}` does.",
    ),
    "name": (
        'Which function of Python\'s `{module}` module fits this description: "{summary}"',
        'I need something from `{module}`: "{summary}" What is it called?',
    ),
    "signature": (
        "What is the signature of `{name}`?",
        "How is `{name}` called? Give its parameters.",
    ),
    "default": (
        "What is the default value of `{parameter}` in `{name}`?",
        "If I leave out `{parameter}` when I call `{name}`, which value is used?",
    ),
    "exception": (
        "Which exception can `{name}` raise, and when?",
        "When does `{name}` raise an exception?",
    ),
}
# Of ten facts: mostly prose that a small model cannot know by heart, the rest exact strings.
_SHARES: tuple[Kind, ...] = (
    "purpose", "signature", "purpose", "name", "default", "purpose", "exception", "purpose", "name", "default",
)  # fmt: skip


@dataclass(frozen=True)
class Fact:
    """One thing that the documentation says of a function, class or method.

    Attributes:
        name: Qualified name, ``shutil.rmtree``; facts of one name are kept on one side of a split.
        fields: What the questions of this kind mention.
    """

    kind: Kind
    module: str
    name: str
    answer: str
    fields: dict[str, str]


def build_demo_dataset(
    out: str | Path, *, seed: int = 0, limit: int = 160, modules: Sequence[str] | None = None
) -> Path:
    """Write question/answer rows about the documentation of installed modules; returns the file (JSON Lines).

    Rows have ``id``, ``question``, ``answer``, ``domain`` and ``meta`` (kind, module, group). A name is asked about in
    one way only, every second one in two wordings; its rows share ``meta["group"]``, so that no split separates them.
    The file is the same for the same seed, limit, modules and Python version.

    Args:
        out: The file to write.
        seed: Chooses facts and wordings.
        limit: Most rows.
        modules: Names of modules to import and read; the standard library's `MODULES` by default.

    Raises:
        DataError: A module cannot be imported, or the documentation yields no facts.
    """
    if limit < 1:
        raise DataError(f"limit is {limit}", where="limit", hint="Ask for at least one row.")
    facts = _collected_afresh(modules or MODULES)
    if not facts:
        raise DataError("no usable documentation in these modules", where="modules", hint=f"Given: {modules}.")
    rows = list(_rows(facts, seed, limit))
    return write_json_lines(rows, out)


def _collected_afresh(modules: Sequence[str]) -> list[Fact]:
    """`collect_facts` in an interpreter of its own: libraries that this process has imported patch the standard
    library, and the file must not depend on that."""
    import json
    import subprocess
    import sys

    program = (
        "import dataclasses, json, sys\n"
        "from regrow.demo import collect_facts\n"
        "from regrow.errors import DataError\n"
        "try:\n"
        "    facts = [dataclasses.asdict(f) for f in collect_facts(json.loads(sys.argv[1]))]\n"
        "    print(json.dumps({'facts': facts}))\n"
        "except DataError as error:\n"
        "    print(json.dumps({'message': error.message, 'where': error.where}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(list(modules))], capture_output=True, text=True, encoding="utf-8"
    )
    if done.returncode:
        raise DataError("the documentation could not be read", where="modules", hint=done.stderr.strip()[-300:])
    answer = json.loads(done.stdout.splitlines()[-1])
    if "message" in answer:
        raise DataError(answer["message"], where=answer["where"])
    return [Fact(**f) for f in answer["facts"]]


def collect_facts(modules: Sequence[str]) -> list[Fact]:
    """All facts of the modules, in the order of modules and names. Descriptions that fit two names are left out.

    Raises:
        DataError: A module cannot be imported.
    """
    found: dict[str, tuple[str, str, Any]] = {}
    for module_name in modules:
        try:
            module = importlib.import_module(module_name)
        except ImportError as err:
            raise DataError(f"cannot be imported: {err}", where=module_name) from err
        for name, obj in _documented(module, module_name):
            found.setdefault(name, (module_name, name, obj))
    summaries = {name: _summary(obj) for name, (_, _, obj) in found.items()}
    times = Counter(s.casefold() for s in summaries.values() if s)
    facts: list[Fact] = []
    for name, (module_name, _, obj) in found.items():
        summary = summaries[name]
        facts += _facts(obj, module_name, name, summary if summary and times[summary.casefold()] == 1 else None)
    return facts


def _documented(module: ModuleType, name: str) -> Iterator[tuple[str, Any]]:
    """Public functions and classes that the module itself defines, and the public methods of those classes."""
    public = getattr(module, "__all__", None) or [n for n in dir(module) if not n.startswith("_")]
    for short in sorted(set(public)):
        obj = getattr(module, short, None)
        if not (inspect.isroutine(obj) or inspect.isclass(obj)) or not _defined_in(obj, name):
            continue
        if obj.__name__ != short:  # an alias, documented under its own name
            continue
        yield f"{name}.{short}", obj
        if inspect.isclass(obj) and not issubclass(obj, BaseException):
            for method, raw in sorted(vars(obj).items()):
                bound = getattr(obj, method, None)
                if not method.startswith("_") and inspect.isroutine(bound) and raw.__doc__:
                    yield f"{name}.{short}.{method}", bound


def _defined_in(obj: Any, module: str) -> bool:
    """Whether ``obj`` belongs to ``module`` (or its C half, such as ``_heapq``) rather than being imported into it."""
    home = getattr(obj, "__module__", None) or ""
    return home.split(".")[0].lstrip("_") == module.split(".")[0]


def _sentences(obj: Any) -> list[str]:
    doc = inspect.getdoc(obj) or ""
    found: list[str] = []
    for paragraph in re.split(r"\n\s*\n", doc):
        if _is_code(paragraph):
            continue
        text = " ".join(paragraph.split())
        found += re.split(r"(?<=[.!?])\s+(?=[A-Z])", text)
    return found


def _is_code(paragraph: str) -> bool:
    """Examples, tables, lists and indented blocks."""
    return bool(re.search(r">>>|^\s{2,}|^\s*[-*:|]|::$|\s{3,}", paragraph, re.MULTILINE))


_UNFIT = re.compile(
    r"deprecat|obsolete|internal|subclass|overrid|helper|\bsee\b|help\(|https?:|\b(?:PEP|RFC|bpo|TODO|etc)\b|self\b"
    r"|__\w+__|->|::|[{}<>|\\]|e\.g\.|i\.e\.|\bthis (?:class|function|method|module)\b"
    r"|\b(?:above|below|following|instead of raising|if it is unavailable)\b|=[^ ]|^\w+\(|\w\(\w*,",
    re.IGNORECASE,
)


def _is_prose(sentence: str, least: int, most: int) -> bool:
    words = sentence.split()
    return (
        least <= len(words) <= most
        and sentence[0].isupper()
        and sentence.isascii()
        and sentence.endswith(".")
        and not _UNFIT.search(sentence)
        and all(sentence.count(a) == sentence.count(b) for a, b in ("()", "[]"))
        and all(sentence.count(q) % 2 == 0 for q in ('"', "`"))
    )


def _tidy(sentence: str) -> str:
    """Markup of the documentation (``*x*``, ``:class:`x```) to plain names."""
    sentence = re.sub(r":\w+:`~?([^`]+)`", r"\1", sentence)
    sentence = re.sub(r"``?([^`]+)``?", r"\1", sentence)
    return re.sub(r"(?<!\w)\*(\w+)\*(?!\w)", r"\1", sentence)


def _summary(obj: Any) -> str | None:
    """The first sentence of the documentation, when it is one a person would answer with."""
    doc = inspect.getdoc(obj)
    if not doc or (inspect.isclass(obj) and not obj.__doc__):
        return None
    first = re.split(r"\n\s*\n", doc)[0]
    if _is_code(first):
        return None
    text = _tidy(re.split(r"(?<=[.!?])\s+(?=[A-Z])", " ".join(first.split()))[0])
    text = text if text.endswith((".", ":", ",")) else f"{text}."
    return text if _is_prose(text, 5, 28) else None


def _facts(obj: Any, module: str, name: str, summary: str | None) -> Iterator[Fact]:
    short = name.removeprefix(f"{module}.")
    if summary is not None:
        yield Fact("purpose", module, name, summary, {})
        told = re.split(r"\W+", summary.casefold())
        own = short.split(".")[-1].casefold()
        if (
            "." not in short
            and not inspect.isclass(obj)
            and not any(w and (w in own or own in w) for w in told if len(w) > 3)
        ):
            yield Fact("name", module, name, f"That is `{name}`.", {"summary": summary})
    signature = None if inspect.isclass(obj) else _signature(obj)
    if signature is not None:
        yield from _signature_facts(signature, module, name)
    if not inspect.isclass(obj):
        for sentence in map(_tidy, _sentences(obj)):
            raised = re.search(r"\b[A-Z][A-Za-z]+(?:Error|Exception)\b", sentence)
            if (
                raised
                and re.search(r"\brais.*\b(if|when|unless)\b|\b(if|when|unless)\b.*\brais", sentence, re.IGNORECASE)
                and _is_prose(sentence, 5, 30)
            ):
                yield Fact("exception", module, name, sentence, {})
                return


def _signature(obj: Any) -> inspect.Signature | None:
    try:
        signature = inspect.signature(obj)
    except (ValueError, TypeError):  # many built-ins have none
        return None
    plain = [
        p.replace(annotation=inspect.Parameter.empty)
        for p in signature.parameters.values()
        if p.name not in ("self", "cls")
    ]
    return signature.replace(parameters=plain, return_annotation=inspect.Signature.empty)


def _signature_facts(signature: inspect.Signature, module: str, name: str) -> Iterator[Fact]:
    parameters = signature.parameters.values()
    shown = str(signature)
    # Addresses and other representations in <> differ from run to run and say nothing.
    tells = len(parameters) >= 2 and not any(
        p.name[0] == "_" or p.name in ("args", "kwds", "kwargs") for p in parameters
    )
    if tells and len(shown) <= 70 and "<" not in shown:
        yield Fact("signature", module, name, f"`{name}{shown}`", {})
    for p in parameters:
        if isinstance(p.default, (bool, int, float, str)) and not p.name.startswith("_"):
            value = repr(p.default)
            if type(p.default) in (bool, int, float, str) and len(value) <= 24 and value.isascii():
                yield Fact(
                    "default", module, name, f"The default value of `{p.name}` is `{value}`.", {"parameter": p.name}
                )
                return


def _rows(facts: Sequence[Fact], seed: int, limit: int) -> Iterator[dict[str, Any]]:
    rng = random.Random(f"demo/{seed}")
    pools: dict[str, list[Fact]] = {}
    for fact in facts:
        pools.setdefault(fact.kind, []).append(fact)
    for pool in pools.values():
        rng.shuffle(pool)
    used: set[str] = set()
    written = 0
    for turn in range(10 * len(facts)):
        pool = pools.get(_SHARES[turn % len(_SHARES)], [])
        while pool and pool[-1].name in used:
            pool.pop()
        if not pool:
            if not any(pools.values()):
                return
            continue
        fact = pool.pop()
        used.add(fact.name)
        for variant in rng.sample(range(len(QUESTIONS[fact.kind])), 1 + len(used) % 2):
            yield _row(fact, variant)
            written += 1
            if written == limit:
                return


def _row(fact: Fact, variant: int) -> dict[str, Any]:
    short = fact.name.removeprefix(f"{fact.module}.")
    question = QUESTIONS[fact.kind][variant].format(name=fact.name, module=fact.module, short=short, **fact.fields)
    return {
        "id": f"{fact.name}/{fact.kind}/{variant}",
        "question": question,
        "answer": fact.answer,
        "domain": "python-api",
        "meta": {"group": fact.name, "kind": fact.kind, "module": fact.module},
    }
