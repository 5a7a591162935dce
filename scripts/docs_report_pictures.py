"""Pictures of a real parity report for README and docs: docs/images/report-light.png and report-dark.png.

    python scripts/docs_report_pictures.py [REPORT_FOLDER]

Without a folder the report is made: `p1` against llama.cpp and transformers, as the README shows. Headless Chromium
draws the report. Parts of it are left out (and the folder before the checkpoint's name), so that the summary and the
two charts of the first target stand together; nothing else is changed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from helpers.browser import Browser  # noqa: E402

WIDTH, LIMIT = 860, 200_000
LEAVE_OUT = """
for (const card of document.querySelectorAll('main > section.card')) {
  if (!card.querySelector('p.verdict') && !card.querySelector('.figures')) card.remove();
}
const [summary, target, ...others] = document.querySelectorAll('main > section.card');
others.forEach(card => card.remove());
for (const part of [...target.children]) {
  if (!part.matches('.head, .figures')) part.remove();
}
const figures = [...target.querySelectorAll('figure')];
figures.slice(2).forEach(figure => figure.remove());
document.querySelectorAll('details').forEach(part => part.remove());
document.querySelectorAll('main > :not(section, h1)').forEach(part => part.remove());
const path = document.querySelector('h1 code');
path.textContent = path.textContent.split('/').pop();
target.getBoundingClientRect().bottom
"""


def make_report(folder: Path) -> Path:
    programs = Path(sys.executable).parent
    for command in (
        "gptoss-convert new p1 -o p1",
        "gptoss-convert to-gguf p1 -o p1.gguf --tokenizer none",
        "gptoss-parity run p1 --target llama_cpp=p1.gguf --target transformers --no-text -o report",
    ):
        program, *arguments = command.split()
        subprocess.run([programs / program, *arguments], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return folder / "report"


def draw(report: Path, dark: bool, out: Path) -> None:
    with Browser() as browser:
        browser.open(report / "report.html", WIDTH, dark)
        bottom = browser.evaluate(LEAVE_OUT)
        browser.screenshot(out, height=round(bottom) + 20)
    assert out.stat().st_size < LIMIT, f"{out}: {out.stat().st_size} bytes"
    print(f"{out.relative_to(ROOT)}: {out.stat().st_size} bytes")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(sys.argv[1]) if len(sys.argv) > 1 else make_report(Path(folder))
        for dark in (False, True):
            draw(report, dark, ROOT / "docs" / "images" / f"report-{'dark' if dark else 'light'}.png")


if __name__ == "__main__":
    main()
