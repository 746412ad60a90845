"""What a table holds, remembered between commits: so that a driver can append without reading the table again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pyarrow.dataset as pds
from deltalake import DeltaTable


class KnownIds:
    """Ids of one table's rows, read once for each value of `group` (a configuration, a run) and followed from then on.

    A table of a million rows would otherwise be read for every commit of some hundred. Files that others add are read
    when they are met; when files have gone (joined, or rows deleted) everything is read anew. About 150 bytes an id.
    """

    def __init__(self, group: str, identity: str) -> None:
        self._group, self._identity = group, identity
        self._version = -1
        self._files: frozenset[str] = frozenset()
        self._ids: dict[str, set[str]] = {}

    def of(self, table: DeltaTable, value: str) -> set[str]:
        """Ids of the rows with this value of `group`, as of the table's version. Not to be changed by the caller."""
        self._follow(table)
        if value not in self._ids:
            self._ids[value] = self._read(table, value, self._files)
        return self._ids[value]

    def appended(self, table: DeltaTable, ids: Mapping[str, Iterable[str]]) -> None:
        """The caller has itself appended these ids by group, and `table` stands at the version that has them."""
        self._see(table)
        for value, added in ids.items():
            if value in self._ids:
                self._ids[value].update(added)

    def rewritten(self, table: DeltaTable, before: int) -> None:
        """The caller has itself joined files of version `before`: other files, the same rows."""
        if self._version == before and table.version() == before + 1:
            self._see(table)

    def _see(self, table: DeltaTable) -> None:
        self._version, self._files = table.version(), frozenset(map(_name, table.file_uris()))

    def _follow(self, table: DeltaTable) -> None:
        if table.version() == self._version:
            return
        before = self._files
        self._see(table)
        if before - self._files:
            self._ids.clear()
        elif new := self._files - before:
            for value, ids in self._ids.items():
                ids |= self._read(table, value, new)

    def _read(self, table: DeltaTable, value: str, files: frozenset[str]) -> set[str]:
        whole = table.to_pyarrow_dataset()
        wanted = [part for part in whole.get_fragments() if _name(part.path) in files]
        chosen = pds.FileSystemDataset(wanted, whole.schema, whole.format, whole.filesystem)
        rows = chosen.to_table(columns=[self._identity], filter=pds.field(self._group) == value)
        return set(rows.column(self._identity).to_pylist())


def _name(path: str) -> str:
    """Of a data file: unique in itself, and the same in a URL as in a path."""
    return path.rpartition("/")[2]
