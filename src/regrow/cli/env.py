"""`regrow env`: is this installation sound?"""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    app.command()(env)


def env() -> None:
    """Show versions and this machine, and look for the traps that break fine-tuning installations."""
    from regrow.models.doctor import diagnose

    marks = {"ok": "ok  ", "warn": "WARN", "fail": "FAIL"}
    checks = diagnose()
    for check in checks:
        print(f"{marks[check.status]}  {check.name}: {check.text}")
        if check.hint and check.status != "ok":
            print(f"      {check.hint}")
    if any(check.status == "fail" for check in checks):
        raise typer.Exit(1)
