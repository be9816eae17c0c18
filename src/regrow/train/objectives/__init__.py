"""Training objectives: functions of logits and targets, free of any trainer."""
