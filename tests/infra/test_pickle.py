"""Nothing in a checkpoint or an array is executed, and no code here could."""

import ast
import os
from pathlib import Path

import pytest
import torch

from operators.sam_audio.sources import CheckpointError
from operators.sam_audio.state_files import read_file

ROOT = Path(__file__).parents[2]
UNPICKLERS = {"pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "dill.load", "cloudpickle.load",
              "cloudpickle.loads", "marshal.loads", "shelve.open"}  # fmt: skip


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickled_code_in_a_checkpoint_is_refused_and_not_run(tmp_path):
    owned = tmp_path / "owned"
    torch.save({"weight": torch.zeros(2), "extra": Payload(owned)}, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        read_file(tmp_path / "checkpoint.pt")
    assert not owned.exists()
    torch.load(tmp_path / "checkpoint.pt", weights_only=False)
    assert owned.exists(), "the payload would have done it"


def calls() -> list[tuple[str, str, dict[str, str]]]:
    """(place, function, keyword arguments) of every call in our code."""
    found = []
    for folder in ("operators", "pipeline", "jobs"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    options = {k.arg: ast.unparse(k.value) for k in node.keywords if k.arg}
                    found.append((f"{path.relative_to(ROOT)}:{node.lineno}", ast.unparse(node.func), options))
    return found


def test_only_the_sandboxs_helper_unpickles_and_only_what_its_own_caller_sends():
    places = {place.partition(":")[0] for place, function, _ in calls() if function in UNPICKLERS}
    assert places == {"operators/sandbox_helper.py"}
    # What has touched a media file comes back as plain values.
    assert "pickle.load" not in (ROOT / "operators" / "sandbox.py").read_text()


def test_every_torch_load_is_of_weights_only():
    loads = [(place, options) for place, function, options in calls() if function == "torch.load"]
    assert loads
    assert [place for place, options in loads if options.get("weights_only") != "True"] == []


def test_no_array_is_loaded_with_pickle_and_no_yaml_with_objects():
    assert [p for p, f, o in calls() if f.endswith(("np.load", "numpy.load")) and o.get("allow_pickle") == "True"] == []
    assert [place for place, function, _ in calls() if function in ("yaml.load", "yaml.unsafe_load")] == []
