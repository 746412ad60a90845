"""The runbook knows every cause of failure that the code can give, and promises no other."""

import ast
import re
from pathlib import Path

from pipeline.config import JobConfig

ROOT = Path(__file__).parents[2]
RUNBOOK = (ROOT / "infra" / "RUNBOOK.md").read_text()
ROWS = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \| (yes|no) \|$", RUNBOOK, re.M)


def causes_in_code() -> set[str]:
    """The literal causes of every AssetError that is made somewhere."""
    found = set()
    for folder in ("operators", "pipeline", "jobs"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and node.args and ast.unparse(node.func).endswith("AssetError"):
                    constants = (part for part in ast.walk(node.args[0]) if isinstance(part, ast.Constant))
                    found |= {part.value for part in constants if isinstance(part.value, str)}
    return found


def test_every_cause_has_a_row_that_says_what_to_do():
    assert causes_in_code() - {cause for cause, *_ in ROWS} == set()


def test_no_row_is_of_a_cause_that_nothing_gives():
    assert {cause for cause, *_ in ROWS} - causes_in_code() == set()


def test_causes_are_sorted_and_stand_once():
    causes = [cause for cause, *_ in ROWS]
    assert causes == sorted(set(causes))


def test_again_is_what_the_settings_retry_by_default():
    default = JobConfig(manifest="none", lake="none").retry_causes
    assert {cause for cause, *_, again in ROWS if again == "yes"} == set(default)


def test_settings_and_programs_that_are_named_exist():
    for program in set(re.findall(r"jobs/\w+\.py", RUNBOOK)):
        assert (ROOT / program).is_file(), program
    settings = set(re.findall(r"`(\w+_\w+)`", RUNBOOK)) & {
        "windows_per_batch", "segment_seconds", "halo_seconds", "decode_seconds", "decode_memory_gb", "retry_causes",
        "retry_limit", "max_attempts", "allowed_read_prefixes", "commit_every_seconds",
    }  # fmt: skip
    assert settings and settings <= set(JobConfig.model_fields)
