"""Two rigs: a small one for a first look, and the whole one of `make faults`."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cuts
import ledger
import pytest
import rig as rigs
from small_models import small_model

# Lakes of 17 scenarios, and what two runs spill at once.
ROOM_GB = 15


def build(folder: Path, endpoint: str, *, count: int, hours: float, bound: float) -> rigs.Rig:
    model = folder / "model"
    small_model().save_pretrained(model)
    media = folder / "media"
    names = cuts.cut_short(media, count)
    names.append(cuts.write_long(media / "long.flac", hours))
    return rigs.Rig(folder, endpoint, [media / name for name in names], model, bound)


# Gone with its module: what runs after it needs the processors.
@pytest.fixture(scope="module")
def small_rig(s3_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[rigs.Rig]:
    rig = build(tmp_path_factory.mktemp("faults-small"), s3_server, count=10, hours=0.4, bound=240)
    rig.reports = False
    yield rig
    rig.close()


@pytest.fixture(scope="session")
def rig(s3_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[rigs.Rig]:
    disk = shutil.disk_usage(tempfile.gettempdir())
    # Ray makes no objects on a disk that is 95 % full: two runs at once then wait for each other.
    room = (disk.free - 0.05 * disk.total) / 1e9
    assert room > ROOM_GB, (
        f"{tempfile.gettempdir()} has {room:.0f} GB left before it is 95 % full, and the scenarios take {ROOM_GB}: "
        "make room there, or set TMPDIR"
    )
    rig = build(tmp_path_factory.mktemp("faults"), s3_server, count=200, hours=3, bound=600)
    yield rig
    rig.close()
    ledger.show()
