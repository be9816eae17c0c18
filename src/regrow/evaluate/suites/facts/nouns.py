"""Plurals of English nouns (lemminflect and inflect), against the wrong forms a learner would make."""

from __future__ import annotations

from regrow.evaluate.suites.facts.fact import Fact, words

IRREGULAR = words("""
man woman child foot tooth goose mouse ox knife wife life leaf wolf half loaf shelf thief calf elf self analysis
basis crisis thesis oasis diagnosis hypothesis phenomenon criterion bacterium
""")
REGULAR = words("""
city baby lady story country party army berry fly butterfly family library battery enemy puppy cherry body box
fox bus bench church dish brush glass class kiss match watch beach peach wish tax lunch bush dress boss witch
tomato potato hero echo boy key toy monkey donkey day valley turkey tray journey book car dog cat tree house
river table chair window door garden apple orange banana horse teacher student doctor nurse farmer bird cow pig
duck bottle spoon plate picture song letter number flower mountain island bridge road street school hospital
computer telephone camera guitar piano photo video radio roof chief belief cliff
""")


def facts() -> list[Fact]:
    """About 130 facts."""
    import inflect
    from lemminflect import getInflection

    engine = inflect.engine()
    out = []
    for noun in IRREGULAR + REGULAR:
        # Two sources; inflect also knows plurals that are hardly used, such as "thiefs".
        known: list[str] = list(getInflection(noun, tag="NNS", inflect_oov=False))
        plural, *others = [*known, str(engine.plural_noun(noun))]
        stem = noun.rstrip("y")
        forms = [noun, f"{noun}s", f"{noun}es", f"{stem}ies", f"{noun}en", f"{noun}'s", f"{plural}s", f"{noun}ses"]
        wrong = tuple(dict.fromkeys(f for f in forms if f not in (plural, *others)))
        out.append(
            Fact(
                f"nouns/plural/{noun}",
                f'What is the plural of the word "{noun}"?',
                f"One {noun}, two",
                plural,
                wrong,
                also=tuple(o for o in dict.fromkeys(others) if o != plural),
                short=True,
            )
        )
    return out
