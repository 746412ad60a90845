"""The job prints what it did to each table, and writes the same as JSON."""

import json
from pathlib import Path

from lake_rows import stem_row

from jobs.compact import main
from pipeline.storage import Store
from pipeline.tables import Tables


def test_compaction_says_what_became_of_each_table(lake: str, tmp_path: Path, capsys) -> None:
    tables = Tables(Store(lake))
    for i in range(5):
        tables.add_stems([stem_row(tables.store, f"a{i}")])
    out = tmp_path / "compact.json"
    assert main(["--lake", lake, "--json", str(out)]) == 0
    said = capsys.readouterr().out
    assert "5 -> 1" in said and "failures   there is no such table" in said
    (stems,) = json.loads(out.read_text())["tables"]
    assert (stems["before"]["files"], stems["after"]["files"], stems["after"]["rows"]) == (5, 1, 5)
    assert tables.read("stems").num_rows == 5


def test_lake_that_may_not_be_named_is_refused(tmp_path: Path, capsys) -> None:
    assert main(["--lake", "ftp://x/y", "--json", str(tmp_path / "c.json")]) == 2
    assert "forbidden_uri" in capsys.readouterr().err
