"""The row: the one type that travels the whole way from a user's file to the trainer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
Source = Literal["domain", "replay"]
Message = dict[str, Any]
"""``{"role": Role, "content": str | list[block]}``; blocks (``{"type": "text"|"image", ...}``) only with images."""


@dataclass(slots=True)
class Row:
    """One training or evaluation example.

    Attributes:
        id: Unique within its file or corpus.
        messages: The dialogue. Plain-text rows (TG-PT, continual pretraining) have one ``assistant`` message
            and ``meta["kind"] == "text"``.
        source: ``domain`` (the user's data) or ``replay`` (grown out of the model).
        domain: A label: the user's domain name, or the topic of the tree.
        images: Paths or URLs, in the order of the image blocks.
        meta: Anything else: provenance, the original file and line.
    """

    id: str
    messages: list[Message]
    source: Source = "domain"
    domain: str = ""
    images: list[str] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The JSON shape; ``images`` and ``meta`` are left out when empty."""
        out: dict[str, Any] = {"id": self.id, "messages": self.messages, "source": self.source, "domain": self.domain}
        if self.images:
            out["images"] = self.images
        if self.meta:
            out["meta"] = self.meta
        return out

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Row:
        """The inverse of `to_dict`; trusts its input (readers validate)."""
        return cls(
            id=data["id"],
            messages=data["messages"],
            source=data.get("source") or "domain",
            domain=data.get("domain") or "",
            images=list(data.get("images") or []),
            meta=dict(data.get("meta") or {}),
        )
