"""The image's recipe: clean by hadolint, and made of files that are there."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "infra" / "docker" / "Dockerfile"
IGNORE = DOCKERFILE.with_name("Dockerfile.dockerignore")
BESIDE = Path(sys.executable).with_name("hadolint")
HADOLINT = str(BESIDE) if BESIDE.exists() else shutil.which("hadolint")


def sources() -> list[str]:
    """What the Dockerfile copies from the repository."""
    lines = re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE.read_text(), re.M)
    return [word for line in lines for word in line.split()[:-1] if not word.startswith("--")]


@pytest.mark.skipif(not HADOLINT, reason="hadolint is missing: pip install -e '.[dev]'")
def test_hadolint_finds_nothing():
    done = subprocess.run(
        [str(HADOLINT), "--failure-threshold", "info", str(DOCKERFILE)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(not HADOLINT, reason="hadolint is missing: pip install -e '.[dev]'")
def test_hadolint_would_find_a_floating_base_and_root(tmp_path):
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python:latest\nRUN apt-get install ffmpeg\nUSER root\n")
    done = subprocess.run([str(HADOLINT), str(bad)], capture_output=True, text=True)
    assert done.returncode and {"DL3007", "DL3002"} <= set(re.findall(r"DL\d+", done.stdout))


def test_copied_files_exist_and_pass_the_ignore_file():
    allowed = {line[1:] for line in IGNORE.read_text().splitlines() if line.startswith("!")}
    assert sources()
    for source in sources():
        assert (ROOT / source).exists(), source
        assert source in allowed, f"{source} is ignored by {IGNORE.name}"


def test_only_what_is_copied_reaches_the_builder():
    lines = [line for line in IGNORE.read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == set(sources())


def test_image_runs_as_the_user_that_the_manifests_name_with_the_projects_python():
    text = DOCKERFILE.read_text()
    user = re.findall(r"^USER (\d+)$", text, re.M)[-1]
    assert f"--uid {user}" in text
    assert f"runAsUser: {user}" in (ROOT / "infra" / "kuberay" / "rayjob.yaml").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bases = re.findall(r"^FROM python:(3\.\d+)\.\d+-slim-bookworm", text, re.M)
    assert len(bases) == 2 and len(set(bases)) == 1 and bases[0] in ("3.11", "3.12")
    assert project["requires-python"] == ">=3.11,<3.13"
    assert {"cluster", "hub"} <= project["optional-dependencies"].keys()
