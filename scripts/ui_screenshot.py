"""Take pictures of the page of a run for the docs (after `make demo`, or a run with ``curate.watch_dialogues``).

python scripts/ui_screenshot.py runs demo              # docs/img/ui.png, the training curves
python scripts/ui_screenshot.py runs mine monitor      # docs/img/monitor.png, the forgetting monitor
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlencode

from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).resolve().parents[1] / "docs/img"
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def main() -> int:
    folder, name, *part = sys.argv[1:]
    out = IMAGES / ("monitor.png" if part == ["monitor"] else "ui.png")
    chromium = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    command = [sys.executable, "-c", "from regrow.cli import main; main()", "ui", folder, "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = server.stdout.readline().split()[-1]
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport={"width": 1180, "height": 860}, color_scheme="light")
            page.goto(f"{url}#/run?{urlencode({'name': name, 'tab': 'training'})}")
            page.locator(".tab > *").first.wait_for()
            page.wait_for_timeout(1500)  # until everything is there and drawn
            if part == ["monitor"]:
                page.get_by_role("region", name="Forgetting monitor", exact=True).screenshot(path=str(out))
            else:
                page.screenshot(path=str(out))
            browser.close()
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()
    print(f"{out}: {out.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
