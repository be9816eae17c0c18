"""Past tense and past participle of English verbs, and the steps of adjectives (lemminflect)."""

from __future__ import annotations

from regrow.evaluate.suites.facts.fact import Fact, words

VERBS = words("""
be become begin bite blow break bring build buy catch choose come cost cut do draw drink drive eat fall feed
feel fight find fly forget forgive freeze get give go grow hear hide hit hold hurt keep know lead leave lend let
lose make mean meet pay put ride ring rise run say see sell send set shake shine shoot shut sing sink sit sleep
speak spend stand steal stick swim take teach tear tell think throw understand wake wear win write walk play
talk work call help look start stop study carry try cry marry plan drop travel arrive decide dance smile jump
open close wash watch paint clean cook answer listen move live love use want
""")
ADJECTIVES = words("""
good bad big small tall short long old young hot cold warm cool fast slow strong weak rich poor hard soft easy
happy heavy light dark bright cheap clean dirty dry wet early late high low large little loud quiet near new
nice pretty safe sad simple smart thick thin wide narrow wise funny busy angry lucky deep kind brave fat flat
fresh sharp sweet
""")


def facts() -> list[Fact]:
    """About 370 facts."""
    out = []
    for verb in VERBS:
        past = _inflect(verb, "VBD")
        # "payed" is a past tense to some and a participle to none: neither right nor fit as a wrong answer.
        doubtful = (*past[1:], *_inflect(verb, "VBN")[1:])
        out.append(
            _fact(
                "past",
                verb,
                past,
                _verb_slips(verb, doubtful),
                f'What is the past tense of the verb "{verb}"?',
                f'The past tense of "{verb}" is "',
            )
        )
        out.append(
            _fact(
                "participle",
                verb,
                _inflect(verb, "VBN"),
                _verb_slips(verb, doubtful),
                f'What is the past participle of the verb "{verb}"?',
                f'The past participle of "{verb}" is "',
            )
        )
    for word in ADJECTIVES:
        slips = _adjective_slips(word)
        out.append(
            _fact(
                "comparative",
                word,
                _inflect(word, "JJR"),
                slips,
                f'What is the comparative form of the adjective "{word}"?',
                f'The comparative of "{word}" is "',
            )
        )
        out.append(
            _fact(
                "superlative",
                word,
                _inflect(word, "JJS"),
                slips,
                f'What is the superlative form of the adjective "{word}"?',
                f'The superlative of "{word}" is "',
            )
        )
    return out


def _inflect(word: str, tag: str) -> tuple[str, ...]:
    """All accepted forms, the usual one first; only from the dictionary, never guessed."""
    from lemminflect import getInflection

    return tuple(getInflection(word, tag=tag, inflect_oov=False))


def _verb_slips(verb: str, doubtful: tuple[str, ...]) -> list[str]:
    forms = [f for tag in ("VBD", "VBN", "VBG", "VBZ") for f in _inflect(verb, tag)]
    return [f for f in (*forms, f"{verb}ed", f"{verb}en", f"{verb}t") if f not in doubtful]


def _adjective_slips(word: str) -> list[str]:
    forms = [f for tag in ("JJR", "JJS") for f in _inflect(word, tag)]
    return [*forms, word, f"{word}ly", f"{word}ness", f"{word}ing"]


def _fact(kind: str, word: str, right: tuple[str, ...], slips: list[str], question: str, opening: str) -> Fact:
    wrong = tuple(dict.fromkeys(s for s in slips if s not in right))
    return Fact(
        f"verbs/{kind}/{word}" if kind in ("past", "participle") else f"adjectives/{kind}/{word}",
        question,
        opening,
        right[0],
        wrong,
        also=right[1:],
        short=True,
    )
