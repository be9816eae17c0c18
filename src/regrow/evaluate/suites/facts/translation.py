"""Months, weekdays, languages and countries in other languages (Unicode CLDR through babel)."""

from __future__ import annotations

from regrow.evaluate.suites.facts.fact import Fact, relation, words

LANGUAGES = {"fr": "French", "es": "Spanish", "de": "German", "it": "Italian", "pt": "Portuguese"}
COUNTRIES = words("DE FR ES IT GB US CN JP RU GR EG TR SE NO NL BE CH AT PL HU BR MX IN ZA IE DK FI IS MA TH")
MONTHS = range(1, 13)
DAYS = range(7)


def facts() -> list[Fact]:
    """About 250 facts."""
    from babel import Locale

    english = Locale("en")
    out: list[Fact] = []
    for code, language in LANGUAGES.items():
        other = Locale(code)
        tables = {
            "day": [(english.days["format"]["wide"][d], other.days["stand-alone"]["wide"][d]) for d in DAYS],
            "month": [(english.months["format"]["wide"][m], other.months["stand-alone"]["wide"][m]) for m in MONTHS],
            "country": [(english.territories[c], other.territories[c]) for c in COUNTRIES],
        }
        for name, pairs in tables.items():
            out += relation(
                f"translation/{code}-{name}",
                [(str(a), str(b)) for a, b in pairs],
                f'How do you say "{{}}" in {language}?',
                f'The {language} word for "{{}}" is "',
            )
    return out
