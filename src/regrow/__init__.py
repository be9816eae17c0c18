"""Regrow: fine-tune a model without it forgetting."""

__version__ = "0.1.0"
