"""The report page as a browser sees it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from amiss.outcome import Report
from amiss.report import write_report
from amiss.report.html import render

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


def browse(url_of: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Open a local page in headless Chromium with a profile of its own."""
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"]
    command += ["--no-first-run", "--disable-background-networking", "--disable-component-update"]
    command += ["--disable-sync", "--hide-scrollbars", "--enable-logging=stderr"]
    command += [f"--user-data-dir={url_of.parent / 'profile'}", *flags, url_of.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)


def console_lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


PROBE = """<!doctype html><body style="margin:0"><iframe srcdoc="{page}"
style="border:0;width:{width}px;height:900px"></iframe><pre></pre><script>
onload = () => {{
  const page = document.querySelector("iframe").contentDocument;
  const root = page.documentElement;
  const first = () => page.querySelector(".all tbody tr").cells[0].textContent;
  const before = first();
  page.querySelector(".all thead button").click();
  document.querySelector("pre").textContent = [
    "client", root.clientWidth, "scroll", root.scrollWidth, before, first()].join(" ");
}};
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH")
def test_renders_in_a_browser_without_errors(full: Report, tmp_path: Path) -> None:
    full.judged[0].path = full.judged[0].path.rename(tmp_path / "data" / f"{'long' * 20}.png")
    full.detector["weights_sha256"] = "9f2c" * 16
    path = write_report(full, tmp_path / "report.html")
    page = path.read_text(encoding="utf-8")
    for width in (1200, 400):
        picture = tmp_path / f"{width}.png"
        done = browse(path, f"--window-size={width},2000", f"--screenshot={picture}")
        assert console_lines(done) == []
        with Image.open(picture) as shot:
            assert shot.size == (width, 2000)
            assert len(np.unique(np.asarray(shot.convert("L")))) > 50
        # A window may have a least width; a frame has none. It also shares the probe's origin.
        probe = tmp_path / f"probe_{width}.html"
        inside = page.replace("&", "&amp;").replace('"', "&quot;")
        probe.write_text(PROBE.format(page=inside, width=width), encoding="utf-8")
        done = browse(probe, "--window-size=1300,1000", "--dump-dom")
        assert console_lines(done) == []
        measured = re.search(r"<pre>client (\d+) scroll (\d+) (\S+) (\S+)</pre>", done.stdout)
        assert measured is not None
        client, scroll, before, after = measured.groups()
        assert int(client) == width
        assert int(scroll) <= width
        assert (before, after) == ("scratch/0.png", "good/1.png")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH")
def test_the_browser_check_catches_a_broken_page(full: Report, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    page = render(full)
    assert '"use strict";' in page
    # Either way the script does not run: it throws, or the policy refuses it for its changed hash.
    broken.write_text(page.replace('"use strict";', 'throw new Error("on purpose");'))
    done = browse(broken, "--window-size=1200,900", f"--screenshot={tmp_path / 'b.png'}")
    assert len(console_lines(done)) >= 1
