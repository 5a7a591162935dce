"""Finished responses in SQLite: a file, or memory. One row per response, with its input items, whole as JSON.

A response is in the file before its client hears that it is complete: a killed server has lost none. Only a machine
that loses its power can lose the last ones (synchronous=NORMAL: an fsync would cost each request several milliseconds).
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from gptoss_adapters.errors import BadInput, OutputError

Json = dict[str, Any]
_VERSION = 2
_TABLE = """create table responses (
    id text primary key, created integer not null, previous text, input text not null, response text not null
) without rowid"""
_ITEMS = "create table items (id text, response text, primary key (id, response)) without rowid"
"""Which responses have an item, in their input or output."""
_SECRETS = "create table secrets (name text primary key, value text not null) without rowid"


class Stored(NamedTuple):
    """input: the items of this turn alone; those before are the previous response's."""

    response: Json
    input: list[Json]


class Store:
    """Thread-safe. Raises BadInput for a file that is not ours, OutputError for one that cannot be written."""

    def __init__(self, path: str | Path | None = None) -> None:
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(path or ":memory:", check_same_thread=False, isolation_level=None)
            self._db.execute("pragma journal_mode=wal")
            self._db.execute("pragma synchronous=normal")
            self._prepare(path)
        except sqlite3.OperationalError as error:
            raise OutputError(f"cannot open the response store: {error}", file=path) from error
        except sqlite3.DatabaseError as error:
            raise BadInput("not a response store", file=path, got=error) from error

    def _prepare(self, path: str | Path | None) -> None:
        version = self._db.execute("pragma user_version").fetchone()[0]
        tables = self._db.execute("select count(*) from sqlite_master").fetchone()[0]
        if version == 0 and not tables:
            self._db.execute("begin immediate")
            self._db.execute(_TABLE)
            self._add_items()
            self._db.execute("commit")
        elif version == 1:  # as it was before items could be found by their ids
            self._db.execute("begin immediate")
            self._add_items()
            self._db.execute("commit")
        elif version != _VERSION:
            raise BadInput("not a response store of this version", file=path, expected=_VERSION, got=version)

    def _add_items(self) -> None:
        self._db.execute(_ITEMS)
        self._db.execute(_SECRETS)
        self._db.execute("create index items_by_response on items (response)")
        for response, items in self._db.execute("select response, input from responses").fetchall():
            self._index(json.loads(response), json.loads(items))
        self._db.execute(f"pragma user_version={_VERSION}")

    def _index(self, response: Json, items: list[Json]) -> None:
        rows = [(str(item["id"]), response["id"]) for item in [*response["output"], *items] if "id" in item]
        self._db.executemany("insert or ignore into items values (?, ?)", rows)

    def add(self, response: Json, items: list[Json]) -> None:
        row = (response["id"], response["created_at"], response["previous_response_id"], _dump(items), _dump(response))
        with self._lock:
            self._db.execute("begin immediate")
            self._db.execute("insert into responses values (?, ?, ?, ?, ?)", row)
            self._index(response, items)
            self._db.execute("commit")

    def get(self, ident: str) -> Stored | None:
        with self._lock:
            row = self._db.execute("select response, input from responses where id = ?", (ident,)).fetchone()
        return None if row is None else Stored(json.loads(row[0]), json.loads(row[1]))

    def delete(self, ident: str) -> bool:
        with self._lock:
            self._db.execute("begin immediate")
            self._db.execute("delete from items where response = ?", (ident,))
            found = bool(self._db.execute("delete from responses where id = ?", (ident,)).rowcount)
            self._db.execute("commit")
        return found

    def secret(self, name: str, make: Callable[[], str]) -> str:
        """What stands under a name, made the first time that it is asked for."""
        with self._lock:
            self._db.execute("begin immediate")
            self._db.execute("insert or ignore into secrets values (?, ?)", (name, make()))
            found = self._db.execute("select value from secrets where name = ?", (name,)).fetchone()
            self._db.execute("commit")
        return str(found[0])

    def find_item(self, ident: str) -> Json | None:
        """An input or output item of any response by its id."""
        with self._lock:
            row = self._db.execute("select response from items where id = ? limit 1", (ident,)).fetchone()
        stored = self.get(row[0]) if row else None
        items = [*stored.response["output"], *stored.input] if stored else []
        return next((item for item in items if item.get("id") == ident), None)

    def chain(self, ident: str) -> list[Json] | None:
        """The input and output items of a response and of all before it, in order; None if one of them is not here."""
        turns: list[list[Json]] = []
        at: str | None = ident
        while at is not None:
            found = self.get(at)
            if found is None:
                return None
            turns.append([*found.input, *found.response["output"]])
            at = found.response["previous_response_id"]
        return [item for turn in reversed(turns) for item in turn]

    def __len__(self) -> int:
        with self._lock:
            return int(self._db.execute("select count(*) from responses").fetchone()[0])

    def close(self) -> None:
        with self._lock:
            self._db.close()


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
