"""Units of measurement: what they measure, their symbols, and how they convert (pint)."""

from __future__ import annotations

from regrow.evaluate.suites.facts.fact import Fact, relation, words

MEASURES = {
    "length": "meter", "mass": "gram", "time": "second", "temperature": "kelvin", "area": "meter ** 2",
    "volume": "meter ** 3", "speed": "meter / second", "force": "newton", "energy": "joule", "power": "watt",
    "pressure": "pascal", "electric current": "ampere", "voltage": "volt", "electrical resistance": "ohm",
}  # fmt: skip
"""Quantity and a unit of it."""
UNITS = words("""
meter kilometer centimeter millimeter inch foot yard mile parsec light_year angstrom fathom gram kilogram pound
ounce ton second minute hour day week month year century kelvin acre hectare liter gallon pint quart barrel knot
newton dyne joule calorie watt horsepower pascal bar ampere volt ohm
""")
SYMBOLS = words("""
meter kilometer centimeter millimeter gram kilogram milligram second hour kelvin newton joule watt kilowatt
pascal ampere volt hertz mole liter milliliter inch foot yard mile pound ounce kilobyte megabyte gigabyte
""")
CONVERSIONS = words("""
minute:second hour:minute day:hour week:day year:month century:year millennium:year meter:centimeter
kilometer:meter centimeter:millimeter meter:millimeter kilogram:gram gram:milligram ton:pound liter:milliliter
foot:inch yard:foot yard:inch mile:foot pound:ounce gallon:quart quart:pint gallon:pint kilowatt:watt
megawatt:kilowatt kilovolt:volt byte:bit kilometer:centimeter
""")


def facts() -> list[Fact]:
    """About 100 facts."""
    from pint import UnitRegistry

    registry = UnitRegistry()
    said = {u: u.replace("_", "-") for u in UNITS}
    quantity = {registry.get_dimensionality(unit): name for name, unit in MEASURES.items()}
    out = relation(
        "units/measures",
        [(said[u], quantity[registry.Unit(u).dimensionality]) for u in UNITS],
        "What does the unit {} measure?",
        "In physics, the {} measures",
        also={"kelvin": ["energy"], "ounce": ["volume"], "pound": ["force"], "ton": ["force"], "light-year": ["time"]},
    )
    out += relation(
        "units/symbol",
        [(u, f"{registry.Unit(u):~}") for u in SYMBOLS],
        "What is the symbol of the unit {}?",
        'The symbol of the unit {} is "',
        short=True,
    )
    for pair in CONVERSIONS:
        big, small = pair.split(":")
        factor = float((1 * registry.Unit(big)).to(small).magnitude)
        n = round(factor)
        if abs(factor - n) > 1e-6 * n:
            raise ValueError(f"{pair} is no whole number: {factor}")
        others = {n * 10, n * 100, max(2, n // 2), n * 2, n + 10, n * 5} - {n}
        plural = {"foot": "feet", "inch": "inches", "century": "centuries", "millennium": "millennia"}.get(
            small, f"{small}s"
        )
        out.append(Fact(f"units/convert/{big}-{small}", f"How many {plural} are in one {big}?", f"One {big} has",
                        f"{n} {plural}", tuple(f"{m} {plural}" for m in sorted(others)), short=True))  # fmt: skip
    return out
