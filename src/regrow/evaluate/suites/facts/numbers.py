"""Number words (num2words), ordinals, and arithmetic with small numbers."""

from __future__ import annotations

from regrow.evaluate.suites.facts.fact import Fact, rng_for


def facts() -> list[Fact]:
    """About 300 facts."""
    from num2words import num2words

    out = []
    for n in [*range(1, 31), *range(32, 100, 3), 100, 110, 150, 200, 250, 300, 400, 500, 750, 1000, 2000, 5000, 10000]:
        near = _near(n, "words")
        word = num2words(n)
        out.append(Fact(f"numbers/digits/{n}", f"Write the number {word} in digits.", f"{word.capitalize()} =",
                        f"{n:d}", tuple(map(str, near)), short=True))  # fmt: skip
        out.append(Fact(f"numbers/words/{n}", f"Write the number {n} in words.", f'The number {n} is written as "',
                        word, tuple(num2words(m) for m in near), short=True))  # fmt: skip
        if n <= 50:
            out.append(Fact(f"numbers/ordinal/{n}", f"What is the ordinal of the number {word}?",
                            f'In a row, number {n} is the "', num2words(n, to="ordinal"),
                            tuple(num2words(m, to="ordinal") for m in near), short=True))  # fmt: skip
    for a in range(1, 11):
        for b in range(1, 11):
            if (a + b) % 2 == 0:
                out.append(_sum(f"{a} + {b}", f"{a} plus {b}", a + b))
            if a > b and (a * b) % 2 == 0:
                out.append(_sum(f"{a} - {b}", f"{a} minus {b}", a - b))
            if a <= b and a > 1:
                out.append(_sum(f"{a} * {b}", f"{a} times {b}", a * b))
    return out


def _near(n: int, key: str) -> list[int]:
    step = 1 if n < 40 else 10 if n < 1000 else 1000
    pool = [m for d in (1, 2, 3, 4, 5) for m in (n + d * step, n - d * step) if m > 0]
    rng_for(0, f"{key}{n}").shuffle(pool)
    return pool


def _sum(key: str, words: str, result: int) -> Fact:
    wrong = tuple(str(m) for m in _near(result, key))
    return Fact(f"numbers/arithmetic/{key}", f"What is {words}?", f"{key} =", str(result), wrong, short=True)
