"""A run's figures, and the page that shows them: complete, safe, and readable in a real browser without network."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import av
import numpy as np
import pytest
from evaluation_sets import RATE, recording
from packs import write_pack

from operators.evaluation import pictures
from operators.evaluation.eval_split import EvalSplit
from operators.evaluation.items import EvaluationSet, Item
from operators.evaluation.metrics import SiSdr
from operators.evaluation.plan import open_baseline
from operators.evaluation.report import Page, choose, examples, render
from operators.evaluation.run import Row, Summary, evaluate, summarise
from operators.evaluation.systems import Separator, System
from operators.evaluation.targets import Target, table
from operators.sam_audio import SAMAudio

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
HOSTILE = "<script>alert(1)</script>\"'&"


class Run:
    """Two settings of three mixes, three systems; one of them fails on one item."""

    def __init__(self, folder: Path) -> None:
        self.items: EvaluationSet = EvalSplit(
            write_pack(folder), count=3, pairs=[("speech", "music"), ("sfx", "music")]
        )
        separator = Separator(SAMAudio.from_pretrained("tiny"), name="tiny")
        self.systems: list[System] = [separator, open_baseline("oracle"), open_baseline("mixture"), Sometimes()]
        self.rows: list[Row] = [row for of_item in evaluate(self.items, self.systems, [SiSdr()]) for row in of_item]
        self.summary: Summary = summarise(self.rows, SiSdr.columns)


class Sometimes:
    """Answers speech in music only, and breaks on the second mix."""

    name = HOSTILE

    def __call__(self, item: Item) -> np.ndarray | None:
        if item.setting != "speech in music":
            return None
        if item.item_id.endswith("1"):
            raise RuntimeError("out of luck")
        return item.mixture


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("pack"))


@pytest.fixture(scope="module")
def page(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    aims = [Target("speech", 8.4, 8.0, "dB"), Target("size", 30.0, 25.0, "MB", at_most=True)]
    texts = Page("A test", run.items.name, run.items.notes, {"clap": "no weights"}, {"Device": "cpu"}, aims)
    found = examples(run.items, run.systems, run.rows, run.summary)
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render(texts, run.summary, run.rows, found))
    return path


def test_summary_has_means_intervals_and_paired_differences(run: Run):
    cells = run.summary.cells["si_sdri_db"]["speech in music"]
    values = [r["si_sdri_db"] for r in run.rows if r["system"] == "tiny" and r["setting"] == "speech in music"]
    assert cells["tiny"].mean == pytest.approx(np.mean(values)) and cells["tiny"].count == 3
    assert cells["tiny"].low <= cells["tiny"].mean <= cells["tiny"].high
    assert cells["mixture"].mean == 0
    difference = run.summary.differences["speech in music"]["mixture"]
    assert difference.mean == pytest.approx(cells["tiny"].mean)
    assert json.loads(json.dumps(run.summary.record()))["main_metric"] == "si_sdri_db"


def test_a_failure_costs_one_result_and_is_told(run: Run):
    assert [r["item_id"] for r in run.summary.failed] == ["speech-in-music/0001"]
    assert run.summary.failed[0]["error"] == "RuntimeError: out of luck"
    assert run.summary.cells["si_sdri_db"]["speech in music"][HOSTILE].count == 2
    assert HOSTILE not in run.summary.cells["si_sdri_db"]["sfx in music"]


def test_best_median_and_worst_are_chosen_by_the_main_metric(run: Run):
    chosen = [
        (rank, row["si_sdri_db"]) for setting, rank, row in choose(run.rows, run.summary) if setting == "sfx in music"
    ]
    assert [rank for rank, _ in chosen] == ["best", "median", "worst"]
    assert chosen[0][1] >= chosen[1][1] >= chosen[2][1]


def test_page_loads_nothing_and_escapes_data(page: Path):
    text = page.read_text()
    assert "default-src 'none'" in text
    assert "<script" not in text and HOSTILE not in text and "&lt;script&gt;" in text
    sources = re.findall(r'(?:src|href)="([^"]{0,12})', text)
    assert sources and all(source.startswith(("data:image", "data:audio")) for source in sources)
    assert "://" not in re.sub(r'"data:[^"]*"', "", text)
    assert len(text) < 12e6


def test_page_has_figures_players_and_reasons(page: Path, run: Run):
    class Seen(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.tags: list[str] = []
            self.text = ""

        def handle_starttag(self, tag: str, attrs: list) -> None:
            self.tags.append(tag)

        def handle_data(self, data: str) -> None:
            self.text += data

    seen = Seen()
    seen.feed(page.read_text())
    # Mixture, two systems and truth for best, median and worst of both settings.
    assert seen.tags.count("audio") == seen.tags.count("figure") == 2 * 3 * 4
    mean = run.summary.cells["si_sdri_db"]["speech in music"]["tiny"].mean
    for said in (f"{mean:.2f}", "no weights", "out of luck", "PASS", "short of target by 5", "A test"):
        assert said in seen.text


def test_player_and_picture_hold_the_sound():
    wave = recording("speech", 3)[:, 0]
    data = base64.b64decode(pictures.player(wave, RATE).partition(",")[2])
    with av.open(io.BytesIO(data)) as container:
        decoded = np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])
    assert len(decoded) == pytest.approx(len(wave), abs=4800)
    assert np.std(decoded) == pytest.approx(np.std(wave), rel=0.1)

    t = np.arange(2 * RATE) / RATE
    levels = pictures.spectrogram(np.sin(2 * np.pi * 1000 * t).astype(np.float32), RATE)
    share = dict(pictures.frequency_ticks(RATE))["1 kHz"]
    assert levels.shape[0] == pictures.ROWS
    assert int(levels.mean(1).argmax()) == pytest.approx(share * pictures.ROWS, abs=2)
    png = base64.b64decode(pictures.picture(levels, 0.0).partition(",")[2])
    with av.open(io.BytesIO(png)) as container:
        frame = next(container.decode(video=0))
    assert (frame.height, frame.width) == levels.shape


def test_targets_say_pass_or_by_how_much_they_are_short():
    text = table([Target("speech", 8.4, 8.0, "dB"), Target("obeyed", 96.0, 97.0, "%")])
    assert "PASS" in text.splitlines()[1] and "short of target by 1" in text.splitlines()[2]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian: apt-get install chromium)")
@pytest.mark.parametrize("dark", [False, True])
def test_page_opens_in_chromium(page: Path, tmp_path: Path, dark: bool):
    """Drawn in the light or dark scheme, wide; every player has read its sound; nothing is left out of the window."""
    probe = tmp_path / "probe.html"
    script = (
        "<script>window.addEventListener('load', () => setTimeout(() => {"
        "const a = [...document.querySelectorAll('audio')].map(x => x.duration).filter(d => d > 7.5 && d < 8.6).length;"
        "const wide = document.documentElement.scrollWidth - window.innerWidth;"
        "document.title = `players ${a} overflow ${wide}`; }, 1500));</script>"
    )
    # The page forbids scripts; this copy lets one measure it.
    text = page.read_text().replace("default-src 'none'", "default-src 'none'; script-src 'unsafe-inline'")
    probe.write_text(text.replace("</body>", script + "</body>"))
    shot = tmp_path / "shot.png"
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--window-size=1200,3000",
    ]
    command += [
        f"--user-data-dir={tmp_path / 'profile'}",
        *(["--blink-settings=preferredColorScheme=0"] if dark else []),
    ]
    subprocess.run([*command, f"--screenshot={shot}", page.as_uri()], check=True, capture_output=True, timeout=120)
    pixels = _pixels(shot)
    background = np.median(pixels.reshape(-1, 3), axis=0).mean()
    assert background < 60 if dark else background > 200
    assert np.std(pixels) > 10
    dumped = subprocess.run(
        [*command, "--virtual-time-budget=8000", "--dump-dom", probe.as_uri()],
        check=True, capture_output=True, text=True, timeout=120,
    ).stdout  # fmt: skip
    found = re.search(r"<title>players (\d+) overflow (-?\d+)</title>", dumped)
    assert found and int(found[1]) == 24 and int(found[2]) <= 0


def _pixels(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        return frame.to_ndarray(format="rgb24")
