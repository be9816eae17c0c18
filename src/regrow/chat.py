"""Talk to several models side by side in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from regrow.arms import BASE, REPLAY
from regrow.errors import RunError
from regrow.runs import MANIFEST, finished_models


def models_of(folder: Path, arms: Sequence[str] | None = None) -> dict[str, Path]:
    """Arm -> model folder of a run (or of a plain model folder).

    Raises:
        RunError: No such arm, or nothing is trained yet.
    """
    if not (folder / MANIFEST).is_file():
        return {folder.name: folder}
    known = finished_models(folder)
    wanted = list(arms or ([BASE, REPLAY] if REPLAY in known else known))
    missing = [a for a in wanted if a not in known]
    if missing:
        raise RunError(f"no arm '{missing[0]}' in this run", where=str(folder), hint=f"it has: {', '.join(known)}")
    return {arm: known[arm] for arm in wanted}


def talk(
    folder: Path,
    *,
    arms: Sequence[str] | None = None,
    max_new_tokens: int = 200,
    temperature: float = 0.0,
    system: str | None = None,
) -> None:
    """Read messages from standard input until /quit or end of file; print each model's answer as it comes."""
    from regrow.models.generate import chat_once
    from regrow.models.load import load_model, load_tokenizer, resolve_model
    from regrow.progress import note

    loaded = {}
    for arm, path in models_of(folder, arms).items():
        note(f"loading {arm} from {path}")
        whole = resolve_model(path).path  # merges a LoRA adapter into its base
        loaded[arm] = (load_model(whole), load_tokenizer(whole))
    start = [{"role": "system", "content": system}] if system else []
    history = {arm: list(start) for arm in loaded}
    asked = 0
    print("Type a message; /reset forgets the dialogue, /quit leaves.")
    while True:
        try:
            said = input("\nyou> ").strip()
        except EOFError:
            print()
            return
        if said == "/quit":
            return
        if said == "/reset":
            history = {arm: list(start) for arm in loaded}
            continue
        if not said:
            continue
        asked += 1
        for arm, (model, tokenizer) in loaded.items():
            history[arm].append({"role": "user", "content": said})
            print(f"{arm}> ", end="", flush=True)
            answer = chat_once(
                model,
                tokenizer,
                history[arm],
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                seed=asked,  # the same question again is another draw
                on_text=lambda piece: print(piece, end="", flush=True),
            )
            print()
            history[arm].append({"role": "assistant", "content": answer})
