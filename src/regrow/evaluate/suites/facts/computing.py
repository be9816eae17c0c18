"""HTTP status codes, file types, characters and HTML entities (the standard library)."""

from __future__ import annotations

import http
import mimetypes
import string
import unicodedata

from regrow.evaluate.suites.facts.fact import Fact, relation, words

FILES = {
    "image": words(".jpg .png .gif .bmp .svg .tiff"),
    "audio": words(".mp3 .wav .aac"),
    "video": words(".mp4 .avi .mov .mpeg .webm"),
    "text": words(".txt .html .css .csv"),
}
GREEK = words("alpha beta gamma delta epsilon theta lamda mu pi sigma phi omega")


def facts() -> list[Fact]:
    """About 240 facts."""
    codes = [(str(s.value), s.phrase) for s in http.HTTPStatus]
    out = relation(
        "computing/http", codes, "What does the HTTP status code {} mean?", "The HTTP status {} means", short=True
    )
    out += relation(
        "computing/http-code",
        [(b, a) for a, b in codes],
        'What is the HTTP status code for "{}"?',
        'The HTTP status code for "{}" is',
    )
    types = mimetypes.MimeTypes()
    for suffix, kind in ((suffix, kind) for kind, suffixes in FILES.items() for suffix in suffixes):
        guessed = types.guess_type(f"x{suffix}")[0]
        if guessed is None or guessed.partition("/")[0] != kind:
            raise ValueError(f"{suffix} is no {kind} file to this Python")
        wrong = tuple(k for k in ("image", "audio", "video", "text", "font") if k != kind)
        out.append(
            Fact(
                f"computing/file/{suffix}",
                f"What does a file that ends in {suffix} hold?",
                f"A {suffix} file holds",
                kind,
                wrong,
            )
        )
    names = [(c, unicodedata.name(c).lower()) for c in string.punctuation]
    out += relation(
        "computing/character", names, "What is the name of the character {} ?", "The character {} is called"
    )
    greek = [(unicodedata.lookup(f"GREEK SMALL LETTER {g.upper()}"), g.replace("lamda", "lambda")) for g in GREEK]
    out += relation(
        "letters/greek", greek, "What is the name of the Greek letter {}?", "The Greek letter {} is called", short=True
    )
    letters = string.ascii_uppercase
    for word, step in (("after", 1), ("before", -1)):
        pairs = [(c, letters[i + step]) for i, c in enumerate(letters) if 0 <= i + step < 26]
        out += relation(
            f"letters/{word}",
            pairs,
            f"Which letter comes {word} {{}} in the alphabet?",
            f"The letter {word} {{}} is",
            short=True,
        )
    return out
