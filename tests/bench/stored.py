"""A run as its JSON has it: read, and checked.

Owns what of a run's JSON a capacity page needs, and which of its figures. A run that has just been made comes the same
way, so that a page is the same of both. Called by `page` and `cli`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tests.bench.capacity import Costs
from tests.bench.findings import FIGURES
from webhooks.errors import InvalidInput
from webhooks.models.wire import make_safe

#: The figures of each cost, and the rows that bring them.
_COSTS = {
    "worker_us": "cpu_workers",
    "redis_us": "cpu_valkey",
    "redis_queueing_us": "cpu_queueing",
    "mongodb_us": "cpu_mongod",
    "worker_mb": "memory",
    "queued_bytes": "redis_bytes",
    "waiting_redis_bytes": "waiting_redis",
    "waiting_mongodb_bytes": "waiting_mongodb",
    "log_bytes": "log_bytes",
    "log_index_bytes": "log_index_bytes",
    "redis_traffic_bytes": "traffic_redis",
    "mongodb_traffic_bytes": "traffic_mongodb",
}
#: The figures that a page computes with.
COST_FIGURES = tuple(_COSTS.values())
#: The most that a number may be, so that nothing computed from it is infinite.
_MOST = 1e15

_Number = Annotated[float, Field(ge=0, le=_MOST, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=0, le=_MOST)]


class InvalidRun(InvalidInput):
    """What was given is not a run that a page can be made of; the text is one line with the remedy."""


class _Stored(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class StoredFigure(_Stored):
    """One figure; see `measures.Figure`."""

    text: str
    unit: str
    #: The median; None where there is none that counts.
    value: _Number | None
    samples: list[_Number]
    note: str
    #: Why there is none.
    error: str | None = None
    absent: str | None = None


class StoredMachine(_Stored):
    """Where a run took place."""

    cores: _Count
    cpu: str
    memory_mb: _Count
    system: str
    python: str
    webhooks: str
    broker: str
    mongod: str


class StoredSizes(_Stored):
    """How much was measured."""

    rounds: _Count
    events: _Count


class StoredPlan(_Stored):
    """What was measured."""

    workers: _Count
    #: Bytes of an event's JSON.
    event_bytes: Annotated[int, Field(ge=1, le=_MOST)]
    sizes: StoredSizes


class StoredRun(_Stored):
    """A run."""

    machine: StoredMachine
    plan: StoredPlan
    #: By their keys.
    figures: dict[str, StoredFigure]
    #: How much else the machine did meanwhile; None: little.
    noise: str | None

    def value(self, key: str) -> float | None:
        """Return a figure's value; None where there is none."""
        return self.figures[key].value if key in self.figures else None

    def costs(self) -> Costs:
        """Return the costs of a delivery.

        Raises:
            InvalidRun: a figure is missing, not more than 0, or in another unit.
        """
        values: dict[str, float] = {}
        for name, key in _COSTS.items():
            figure = self.figures.get(key)
            if figure is None or figure.value is None:
                reason = (figure.error or figure.absent) if figure else None
                raise _refuse(f"figures.{key}: is missing{f', as {make_safe(reason)}' if reason else ''}")
            if figure.unit != FIGURES[key].unit:
                raise _refuse(f"figures.{key}.unit: must be {FIGURES[key].unit}")
            if figure.value <= 0:
                raise _refuse(f"figures.{key}.value: must be more than 0")
            values[name] = figure.value
        return Costs(**values, event_bytes=self.plan.event_bytes)


def read_run(data: Mapping[str, Any]) -> StoredRun:
    """Read a run.

    Args:
        data: as `report.Report.to_dict` has it.

    Raises:
        InvalidRun: it is none.
    """
    try:
        return StoredRun.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = make_safe(".".join(str(part) for part in first["loc"])) or "the whole"
        reason = "is missing" if first["type"] == "missing" else first["msg"]
        raise _refuse(f"{place}: {reason[:1].lower()}{reason[1:]}") from None


def read_run_file(path: Path) -> StoredRun:
    """Read a run out of a file that ``python -m tests.bench --json`` wrote.

    Raises:
        InvalidRun: there is none in it.
    """
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise InvalidRun(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise InvalidRun(f"{path} holds no JSON: {_REMEDY}") from None
    try:
        return read_run(data)
    except InvalidRun as error:
        raise InvalidRun(f"{path}: {error}") from None


_REMEDY = "make one with `python -m tests.bench --only a,waiting --json FILE`, with no servers given"


def _refuse(what: str) -> InvalidRun:
    return InvalidRun(f"no run that a page can be made of: {what}; {_REMEDY}")
