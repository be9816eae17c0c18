"""Mixes the user's rows with replay: one stream of token rows with a loss weight on every token."""
