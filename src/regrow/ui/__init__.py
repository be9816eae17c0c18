"""The live page of `regrow ui`: reads run directories, starts and stops runs, never touches a stage's work."""
