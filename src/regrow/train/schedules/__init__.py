"""Learning-rate schedules that transformers does not have."""
