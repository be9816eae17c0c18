"""Days, months and years (the calendar of the standard library)."""

from __future__ import annotations

import calendar

from regrow.evaluate.suites.facts.fact import Fact, relation, words

# The C locale's names whatever the user's locale is.
MONTHS = words("January February March April May June July August September October November December")
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
ORDINALS = words("first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth")


def facts() -> list[Fact]:
    """About 120 facts."""
    out: list[Fact] = []
    for unit, names in (("month", MONTHS), ("day", DAYS)):
        n = len(names)
        for word, step in (("after", 1), ("before", -1)):
            out += relation(
                f"dates/{unit}-{word}",
                [(names[i], names[(i + step) % n]) for i in range(n)],
                f"Which {unit} comes {word} {{}}?",
                f"The {unit} that comes {word} {{}} is",
                short=True,
            )
        out += relation(
            f"dates/{unit}-two-after",
            [(names[i], names[(i + 2) % n]) for i in range(n)],
            f"Which {unit} comes two {unit}s after {{}}?",
            f"Two {unit}s after {{}} comes",
        )
        out += relation(
            f"dates/{unit}-abbreviation",
            [(name[:3], name) for name in names if len(name) > 3],
            f"Which {unit} is abbreviated {{}}?",
            "{} is short for",
            short=True,
        )
    out += relation(
        "dates/month-number",
        list(zip(ORDINALS, MONTHS, strict=True)),
        "Which is the {} month of the year?",
        "The {} month of the year is",
        short=True,
    )
    out += relation(
        "dates/number-of-month",
        list(zip(MONTHS, ORDINALS, strict=True)),
        "Which month of the year is {} by order?",
        "Counting from January, {} is the",
    )
    for i, month in enumerate(MONTHS, 1):
        days = calendar.monthrange(2023, i)[1]
        wrong = tuple(str(d) for d in (27, 28, 29, 30, 31, 32) if d != days and not (i == 2 and d == 29))
        out.append(
            Fact(
                f"dates/days-in/{month}",
                f"How many days does {month} have in a normal year?",
                f"{month} has",
                f"{days} days",
                tuple(f"{w} days" for w in wrong),
                short=True,
            )
        )
    holidays = [
        ("Christmas Day", "December"),
        ("New Year's Day", "January"),
        ("Valentine's Day", "February"),
        ("Halloween", "October"),
        ("April Fools' Day", "April"),
        ("Saint Patrick's Day", "March"),
    ]
    out += relation("dates/holiday", holidays, "In which month is {}?", "{} is in the month of", short=True)
    return out
