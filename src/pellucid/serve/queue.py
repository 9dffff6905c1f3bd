"""The queue and the history: one table in SQLite, which outlives a killed server.

A job is a row from the time it is accepted to the time it is deleted. A change is on the disk when
the method returns, so an accepted job is never lost, and one that reads "done" has its pictures.
SQLite writes a log ahead and does not wait for the disk; `sync` does, for the log, and outside of the
lock: meanwhile others read and write, and one wait serves all that wrote before it.

Queue libraries for SQLite (persist-queue, litequeue, huey) keep what waits and drop what is done.
Here places, priorities, a bin and a searchable history are needed as well, so this is a table.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

State = Literal["queued", "running", "done", "failed", "cancelled"]
Kind = Literal["generate", "explain", "noise", "autoencoder", "clip"]
Fault = Literal["request", "server"]
"""Why a job failed: it asked for something that cannot be done, or the server could not do it."""
ENDED: tuple[State, ...] = ("done", "failed", "cancelled")

SCHEMA = """
create table if not exists jobs (
  number integer primary key autoincrement,
  id text not null unique,
  kind text not null,
  api text not null,
  model text not null,
  request text not null,
  resolved text not null,
  options text not null,
  state text not null,
  priority integer not null,
  place real not null,
  created real not null,
  started real,
  finished real,
  error text,
  fault text,
  warnings text not null,
  favourite integer not null default 0,
  deleted real,
  grid text,
  work real not null
);
create index if not exists waiting on jobs (state, priority desc, place);
create index if not exists grids on jobs (grid);
create table if not exists pictures (
  job text not null,
  position integer not null,
  picture text not null,
  seed integer not null,
  width integer not null,
  height integer not null,
  favourite integer not null default 0,
  primary key (job, position)
);
create index if not exists used on pictures (picture);
create table if not exists facts (name text primary key, value text not null);
"""
JSON = ("request", "resolved", "options", "warnings")
"""Columns that hold JSON."""
PICTURE_NAME = re.compile(r"\b[0-9a-f]{64}\b")
ORDER = "order by priority desc, place, number"
SYNC = getattr(os, "fdatasync", os.fsync)
MOST_EQUALS = 64
"""Jobs at most that are drawn in one batch."""


class Picture(NamedTuple):
    """A picture that a job has made. picture: its name in the store of pictures."""

    picture: str
    seed: int
    width: int
    height: int
    favourite: bool = False


@dataclass
class Job:
    """What was asked for, where it is, and what came of it."""

    kind: Kind
    api: str
    """The interface that it came from."""
    model: str
    request: dict[str, Any]
    """The fields of a `Request` that were given, and the seed. Files are named, never paths."""
    resolved: dict[str, Any] = field(default_factory=dict)
    """The same with the model's defaults."""
    options: dict[str, Any] = field(default_factory=dict)
    """How it is drawn: previews, versus."""
    warnings: list[str] = field(default_factory=list)
    priority: int = 0
    grid: str | None = None
    work: float = 0.0
    """Steps x pixels x pictures, from which the time is estimated."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    number: int = 0
    """Rises from job to job."""
    state: State = "queued"
    place: float = 0.0
    """Jobs of one priority run in this order."""
    created: float = field(default_factory=time.time)
    started: float | None = None
    finished: float | None = None
    error: str | None = None
    fault: Fault | None = None
    """Of a job that failed."""
    favourite: bool = False
    deleted: float | None = None
    """When it was put into the bin."""
    pictures: list[Picture] = field(default_factory=list)


COLUMNS = tuple(each.name for each in fields(Job) if each.name not in ("pictures", "number"))


class Search(NamedTuple):
    """Which jobs of the history; newest first."""

    text: str = ""
    """All of its words occur in the prompts, the settings or the model's name."""
    state: State | None = None
    favourite: bool | None = None
    deleted: bool = False
    grid: str | None = None
    before: int | None = None
    """Only jobs with a lower number: the next page."""
    limit: int = 50


class Queue:
    """The jobs of one server. Safe to use from several threads.

    Raises sqlite3.Error: the file is no database, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        try:
            self._db.execute("pragma journal_mode = wal")
            self._db.execute("pragma synchronous = normal")
            self._db.executescript(SCHEMA)
            self._log = os.open(f"{path}-wal", os.O_RDWR)
        except (sqlite3.Error, OSError):
            self._db.close()
            raise
        if "fault" not in [row["name"] for row in self._rows("pragma table_info(jobs)")]:
            self._db.execute("alter table jobs add column fault text")  # of an older version
        if "favourite" not in [row["name"] for row in self._rows("pragma table_info(pictures)")]:
            self._db.executescript(
                "alter table pictures add column favourite integer not null default 0; update pictures "
                "set favourite = coalesce((select favourite from jobs where id = job), 0)"
            )

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            os.close(self._log)
            self._db.close()

    def sync(self) -> None:
        """Wait until all changes are on the disk."""
        SYNC(self._log)

    @contextmanager
    def _change(self, sync: bool = True) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it is on the disk afterwards, or nothing of it. Without `sync` it
        outlives a killed process, but perhaps not a power failure."""
        with self._lock:
            self._db.execute("begin immediate")
            try:
                yield self._db
            except BaseException:
                self._db.execute("rollback")
                raise
            self._db.execute("commit")
        if sync:
            self.sync()

    def _rows(self, sql: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[sqlite3.Row]:
        with self._lock:
            return self._db.execute(sql, values).fetchall()

    # ------------------------------------------------------------ jobs

    def add(self, jobs: Sequence[Job]) -> None:
        """Put new jobs at the end of the queue, all or none. Sets their numbers and places. They are on
        the disk after `sync`; a worker can begin before."""
        names, marks = ", ".join(COLUMNS), ", ".join(f":{name}" for name in COLUMNS)
        with self._change(sync=False) as db:
            (last,) = db.execute("select coalesce(max(place), 0) from jobs").fetchone()
            for place, job in enumerate(jobs, start=1):
                job.place = last + place
                values = {name: getattr(job, name) for name in COLUMNS}
                values |= {name: _json(values[name]) for name in JSON}
                done = db.execute(f"insert into jobs ({names}) values ({marks})", values)
                job.number = done.lastrowid or 0

    def job(self, id: str) -> Job | None:
        """The job of this id; None: there is none."""
        return next(iter(self._jobs("where id = ?", [id])), None)

    def next(self, count: int) -> list[Job]:
        """The first jobs of the queue."""
        return self._jobs(f"where state = 'queued' {ORDER} limit {count:d}")

    def equals(self, job: Job) -> list[Job]:
        """The waiting jobs that can be drawn in the same batch as `job`, which waits; with it. The first
        ones of its priority."""
        if (batch := job.options.get("batch")) is None:
            return [job]
        return self._jobs(
            "where state = 'queued' and priority = ? and model = ? "
            f"and json_extract(options, '$.batch.key') = ? {ORDER} limit {MOST_EQUALS}",
            [job.priority, job.model, batch["key"]],
        )

    def order(self) -> list[tuple[str, str, float]]:
        """Id, model and work of each waiting job, the next one first."""
        rows = self._rows(f"select id, model, work from jobs where state = 'queued' {ORDER}")
        return [tuple(row) for row in rows]

    def running(self) -> list[Job]:
        """What is drawn now."""
        return self._jobs(f"where state = 'running' {ORDER}")

    def count_waiting(self) -> int:
        """How many jobs wait."""
        return int(self._rows("select count(*) from jobs where state = 'queued'")[0][0])

    def counts(self) -> dict[str, int]:
        """How many jobs there are in each state."""
        rows = self._rows("select state, count(*) from jobs group by state")
        return {row[0]: row[1] for row in rows}

    def find(self, search: Search) -> tuple[list[Job], int]:
        """A page of the history, and how many jobs match in all."""
        where = ["deleted is not null" if search.deleted else "deleted is null"]
        values: list[Any] = []
        for word in search.text.split():
            where.append(r"(resolved like ? escape '\' or model like ? escape '\' or id = ?)")
            values += [_like(_json(word)[1:-1]), _like(word), word]
        for name in ("state", "favourite", "grid"):
            if (value := getattr(search, name)) is not None:
                where.append(f"{name} = ?")
                values.append(value)
        matching = "where " + " and ".join(where)
        (total,) = self._rows(f"select count(*) from jobs {matching}", values)[0]
        if search.before is not None:
            matching += " and number < ?"
            values.append(search.before)
        return self._jobs(f"{matching} order by number desc limit {search.limit:d}", values), total

    def _jobs(self, clause: str, values: Sequence[Any] = ()) -> list[Job]:
        with self._lock:
            rows = self._rows(f"select number, {', '.join(COLUMNS)} from jobs {clause}", values)
            jobs = [self._job(row) for row in rows]
            made = {job.id: job.pictures for job in jobs}
            ids = list(made)
            for first in range(0, len(ids), 500):  # SQLite takes a limited number of values
                some = ids[first : first + 500]
                marks = ", ".join("?" * len(some))
                for job, name, seed, width, height, favourite in self._rows(
                    "select job, picture, seed, width, height, favourite from pictures "
                    f"where job in ({marks}) order by job, position",
                    some,
                ):
                    made[job].append(Picture(name, seed, width, height, bool(favourite)))
            return jobs

    @staticmethod
    def _job(row: sqlite3.Row) -> Job:
        values = dict(row)
        values |= {name: json.loads(values[name]) for name in JSON}
        values["favourite"] = bool(values["favourite"])
        return Job(**values)

    # ------------------------------------------------------------ from state to state

    def take(self, ids: Sequence[str]) -> list[str]:
        """Those of the queued jobs `ids` that now run: another thread may have been first."""
        taken = []
        with self._change(sync=False) as db:  # if it is lost, the job waits, as after any other end
            for id in ids:
                done = db.execute(
                    "update jobs set state = 'running', started = ? where id = ? and state = 'queued'",
                    (time.time(), id),
                )
                taken += [id] * done.rowcount
        return taken

    def finish(
        self,
        id: str,
        state: State,
        error: str | None = None,
        pictures: Sequence[Picture] = (),
        warnings: Sequence[str] = (),
        fault: Fault | None = None,
    ) -> Job | None:
        """End a job that runs or waits; the job as it is then, None: it has ended already, or there is
        none. The pictures must be stored. warnings: further ones."""
        with self._change() as db:
            job = self.job(id)
            if job is None or job.state in ENDED:
                return None
            job.state, job.error, job.fault, job.finished = state, error, fault, time.time()
            job.warnings = list(dict.fromkeys([*job.warnings, *warnings]))
            job.pictures = list(pictures)
            db.execute(
                "update jobs set state = ?, error = ?, fault = ?, finished = ?, warnings = ? "
                "where id = ?",
                (state, error, fault, job.finished, _json(job.warnings), id),
            )
            db.execute("delete from pictures where job = ?", (id,))
            db.executemany(
                "insert into pictures values (?, ?, ?, ?, ?, ?, ?)",
                [(id, i, *picture) for i, picture in enumerate(pictures)],
            )
        return job

    def requeue(self, ids: Sequence[str] | None = None) -> int:
        """Running jobs wait again, at their old places; None: all of them. How many."""
        with self._change() as db:
            if ids is None:
                done = db.execute(
                    "update jobs set state = 'queued', started = null where state = 'running'"
                )
                return done.rowcount
            return sum(
                db.execute(
                    "update jobs set state = 'queued', started = null "
                    "where id = ? and state = 'running'",
                    (id,),
                ).rowcount
                for id in ids
            )

    def retry(self, id: str) -> bool:
        """A job that failed or was cancelled waits again, at the end; False: it did neither."""
        with self._change() as db:
            done = db.execute(
                "update jobs set state = 'queued', error = null, fault = null, started = null, "
                "finished = null, "
                "deleted = null, place = (select max(place) + 1 from jobs) "
                "where id = ? and state in ('failed', 'cancelled')",
                (id,),
            )
        return bool(done.rowcount)

    def move(self, id: str, place: int) -> bool:
        """Give a waiting job its place in the queue, 1 is the next; False: it does not wait.

        It gets the priority of the job whose place it takes.
        """
        with self._change() as db:
            waiting = db.execute(
                f"select id, priority from jobs where state = 'queued' {ORDER}"
            ).fetchall()
            order = [row["id"] for row in waiting]
            if id not in order:
                return False
            priority = {row["id"]: row["priority"] for row in waiting}
            at = min(place, len(order)) - 1
            db.execute("update jobs set priority = ? where id = ?", (priority[order[at]], id))
            order.remove(id)
            order.insert(at, id)
            first = min(
                row[0] for row in db.execute("select place from jobs where state = 'queued'")
            )
            db.executemany(
                "update jobs set place = ? where id = ?",
                [(first + i / (len(order) + 1), each) for i, each in enumerate(order)],
            )
        return True

    # ------------------------------------------------------------ marks

    def mark(self, id: str, **values: Any) -> bool:
        """Set `favourite` (of all its pictures), `deleted` or `priority`; False: there is no such
        job."""
        named = ", ".join(f"{name} = ?" for name in values)
        with self._change() as db:
            done = db.execute(f"update jobs set {named} where id = ?", [*values.values(), id])
            if "favourite" in values:
                change = "update pictures set favourite = ? where job = ?"
                db.execute(change, (values["favourite"], id))
        return bool(done.rowcount)

    def mark_picture(self, id: str, position: int, favourite: bool) -> bool:
        """Mark a picture of a job, counted from 0; False: there is none. The job is a favourite if one
        of its pictures is."""
        with self._change() as db:
            change = "update pictures set favourite = ? where job = ? and position = ?"
            done = db.execute(change, (favourite, id, position))
            db.execute(
                "update jobs set favourite = exists "
                "(select 1 from pictures where job = id and favourite) where id = ?",
                (id,),
            )
        return bool(done.rowcount)

    def forget(self, id: str) -> list[str]:
        """Delete a job that is in the bin; the names of its pictures that no other job has made or
        names, for instance to start from."""
        with self._change() as db:
            gone = db.execute(
                "delete from jobs where id = ? and deleted is not null "
                "and state in ('done', 'failed', 'cancelled')",
                (id,),
            )
            if not gone.rowcount:
                return []
            rows = db.execute(
                "select picture from pictures as own where job = ? and not exists "
                "(select 1 from pictures where picture = own.picture and job != own.job) "
                "and not exists (select 1 from jobs where instr(request || options, own.picture))",
                (id,),
            ).fetchall()
            db.execute("delete from pictures where job = ?", (id,))
            db.execute(  # of a grid whose last job is gone
                "delete from facts where name like 'grid %' and not exists "
                "(select 1 from jobs where grid = substr(facts.name, 6))"
            )
        return [name for (name,) in rows]

    def pictures(self) -> set[str]:
        """The names of all pictures that a job has made or names."""
        made = self._rows("select distinct picture from pictures")
        named = self._rows("select request || options from jobs")
        return {name for (name,) in made} | {
            name for (text,) in named for name in PICTURE_NAME.findall(text)
        }

    def fact(self, name: str) -> str | None:
        """What `remember` has stored under a name."""
        return next(
            (row[0] for row in self._rows("select value from facts where name = ?", [name])), None
        )

    def remember(self, name: str, value: str) -> None:
        """Store a text under a name."""
        with self._change() as db:
            db.execute(
                "insert into facts values (?, ?) "
                "on conflict (name) do update set value = excluded.value",
                (name, value),
            )


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _like(text: str) -> str:
    """The pattern of texts that contain `text`."""
    return "%" + re.sub(r"([\\%_])", r"\\\1", text) + "%"
