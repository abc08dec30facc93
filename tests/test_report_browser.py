"""report.html in a real browser: nothing complains, nothing sticks out, light is not dark."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_folders import made

from fedsim.report.page import write_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the PATH")

# Inside the page: what a reader at this width would stumble over. Told to the page around it.
PROBE = """<script>
const errors = [];
addEventListener("error", event => errors.push(String(event.message || event.target.outerHTML)), true);
addEventListener("securitypolicyviolation", event => errors.push(event.violatedDirective));
addEventListener("load", () => {
  document.querySelectorAll("details").forEach(one => { one.open = true; });
  const wide = document.documentElement.clientWidth, out = [], over = [];
  for (const text of document.querySelectorAll("svg text, h1, h2, h3, p, dd, li")) {
    const box = text.getBoundingClientRect();
    if (box.width && (box.left < -0.5 || box.right > wide + 0.5)) out.push(text.textContent);
  }
  for (const drawing of document.querySelectorAll("svg")) {
    const texts = [...drawing.querySelectorAll(".name, .soft")];
    const boxes = texts.map(text => [text.textContent, text.getBoundingClientRect()]);
    boxes.forEach(([a, p], i) => boxes.slice(i + 1).forEach(([b, q]) => {
      const across = Math.min(p.right, q.right) - Math.max(p.left, q.left);
      const down = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
      if (across > 1 && down > 0.4 * Math.min(p.height, q.height)) over.push(a + " / " + b);
    }));
  }
  const links = [...document.querySelectorAll("a")].map(a => a.getAttribute("href"));
  parent.postMessage({
    width: wide, scroll: document.documentElement.scrollWidth, out, over, errors, links: links.length,
    astray: links.filter(to => !to.startsWith("#") || !document.getElementById(to.slice(1))),
    drawn: [...document.querySelectorAll("svg")].filter(one => one.getBoundingClientRect().height > 20).length,
    tables: [...document.querySelectorAll(".scroll")].every(one => one.getBoundingClientRect().right <= wide + 0.5),
  }, "*");
});
</script>"""

AROUND = """<!DOCTYPE html><body><pre id="told"></pre><script>
const told = [];
addEventListener("message", event => {
  told.push(event.data);
  if (told.length === 2) document.getElementById("told").textContent = JSON.stringify(told);
});
</script><iframe src="probed.html" width="360" height="800"></iframe>
<iframe src="probed.html" width="1280" height="800"></iframe></body>"""


def chromium(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs it headless with a profile of its own."""
    assert CHROMIUM is not None
    profile = tmp_path / "profile"
    fixed = [
        "--headless", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--enable-logging=stderr", "--v=0",
        f"--user-data-dir={profile}",
    ]  # fmt: skip
    if os.geteuid() == 0:
        fixed.append("--no-sandbox")
    done = subprocess.run([CHROMIUM, *fixed, *arguments], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not complaints, complaints
    return done


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    labels = ["FedAvg", "FedAU, cut off at K = 50", "FedStale", "MIFA", "FedVARP", "FedAdam", "SCAFFOLD", "gossip"]
    lost = {("MIFA", 2): "the loss is not finite: lower the learning rate or the number of local steps"}
    folder = made(
        tmp_path_factory.mktemp("browser") / "run", labels, lost=lost, more=["train_objective", "worst_class_accuracy"]
    )
    return write_page(folder)


def test_nothing_complains_and_nothing_sticks_out(page: Path, tmp_path: Path) -> None:
    """At 360 and at 1280 pixels, with everything folded out."""
    text = page.read_text()
    (tmp_path / "probed.html").write_text(text.replace("<head>", f"<head>{PROBE}", 1))
    (tmp_path / "around.html").write_text(AROUND)
    done = chromium(tmp_path, "--virtual-time-budget=10000", "--dump-dom", f"file://{tmp_path / 'around.html'}")
    found = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found
    told: list[dict[str, Any]] = json.loads(html.unescape(found[1]))
    assert sorted(one["width"] for one in told) == [360, 1280]
    for one in told:
        assert one["errors"] == []
        assert one["scroll"] <= one["width"], "the page scrolls sideways"
        assert one["out"] == [], "text sticks out"
        assert one["over"] == [], "text lies on text"
        assert one["tables"], "a table does not scroll in its own box"
        assert one["links"] > 10
        assert one["astray"] == []
        assert one["drawn"] == text.count("<svg ")


def test_light_and_dark(page: Path, tmp_path: Path) -> None:
    from PIL import Image

    shots = {}
    for name, more in (("light", []), ("dark", ["--force-dark-mode"])):
        chromium(tmp_path, *more, "--window-size=1000,1600", f"--screenshot={tmp_path / name}.png", f"file://{page}")
        with Image.open(tmp_path / f"{name}.png") as image:
            shots[name] = np.asarray(image.convert("RGB")).astype(int)
    light, dark = shots["light"], shots["dark"]
    assert light.shape == dark.shape
    assert light[0, 0].tolist() == [255, 255, 255]
    assert dark[0, 0].tolist() == [0x14, 0x17, 0x1B]
    for shot, blue in ((light, (0x00, 0x72, 0xB2)), (dark, (0x2F, 0x8F, 0xD6))):
        assert (shot == blue).all(2).sum() > 100, "the first strategy's colour is not to be seen"
        assert (shot != shot[0, 0]).any(2).mean() > 0.03, "the page is blank"
    assert np.abs(light - dark).max(2).mean() > 150
