"""Random streams by name, so that a draw depends on what it is for and on nothing that ran before."""

from __future__ import annotations

import hashlib


def seed_for(seed: int, *names: str | int) -> int:
    """A 63-bit seed out of the run's seed and names (an item, a prompt's number); the same on every platform."""
    text = "\n".join(map(str, (seed, *names))).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
