"""Loops above the stages: they call stages again with what an earlier stage found out."""
