from __future__ import annotations

from regrow.progress import event_sink, note, task


def test_events_carry_progress_and_the_last_state(capsys):
    seen = []
    with event_sink(lambda kind, data: seen.append((kind, data))), task("growing", 10, "nodes") as bar:
        bar.skip(4)
        bar.advance(6, kept=3)
    assert seen[-1] == (
        "progress",
        {"task": "growing", "done": 10.0, "skipped": 4.0, "total": 10, "unit": "nodes", "eta": 0.0, "kept": 3},
    )


def test_eta_counts_only_fresh_work():
    with task("x", 100, "steps") as bar:
        bar.skip(90)
        assert bar.eta() is None
        bar.started -= 10
        bar.advance(5)
        assert 9 < bar.eta() < 12


def test_no_sink_no_terminal_is_quiet_and_fails_nothing(capsys):
    with task("x", None, "items") as bar:
        bar.advance(1)
    assert capsys.readouterr().err == ""


def test_a_note_goes_to_stderr_and_to_the_sink(capsys):
    seen = []
    with event_sink(lambda kind, data: seen.append((kind, data))):
        note("[bold]not markup[/bold]")
    assert "[bold]not markup[/bold]" in capsys.readouterr().err
    assert seen == [("note", {"text": "[bold]not markup[/bold]"})]
