"""A run as its JSON has it, read and checked, as far as the capacity page needs it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tests.bench.capacity import COSTS
from tests.bench.rows import FIGURES
from webhooks.errors import InvalidInput
from webhooks.models.wire import make_safe

#: The most that a number may be, so that nothing computed from it is infinite.
_MOST = 1e15
_REMEDY = "make one with `python -m tests.bench --only a,waiting --json FILE`, with no servers given"

_Number = Annotated[float, Field(ge=0, le=_MOST, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=0, le=_MOST)]


class InvalidRun(InvalidInput):
    """No run that a page can be made of; the text is one line with the remedy."""

    def __init__(self, what: str) -> None:
        super().__init__(f"no run that a page can be made of: {what}; {_REMEDY}")


class _Stored(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class StoredFigure(_Stored):
    """See `measures.Figure`."""

    unit: str
    value: _Number | None
    samples: list[_Number]
    note: str
    error: str | None = None
    absent: str | None = None


class StoredMachine(_Stored):
    cores: _Count
    cpu: str
    memory_mb: _Count
    system: str
    python: str
    webhooks: str
    broker: str
    mongod: str


class StoredSizes(_Stored):
    rounds: _Count
    events: _Count


class StoredPlan(_Stored):
    workers: _Count
    event_bytes: Annotated[int, Field(ge=1, le=_MOST)]
    sizes: StoredSizes


class StoredRun(_Stored):
    """A run; see `report.Report.to_dict`."""

    machine: StoredMachine
    plan: StoredPlan
    figures: dict[str, StoredFigure]
    noise: str | None

    def value(self, key: str) -> float | None:
        """Return a figure's value; None if there is none."""
        return self.figures[key].value if key in self.figures else None

    def costs(self) -> dict[str, float]:
        """Return what `capacity.need` computes with.

        Raises:
            InvalidRun: a figure is missing, not more than 0, or in another unit.
        """
        values: dict[str, float] = {"event_bytes": self.plan.event_bytes}
        for key in COSTS:
            figure = self.figures.get(key)
            if figure is None or figure.value is None:
                reason = (figure.error or figure.absent) if figure else None
                raise InvalidRun(f"figures.{key}: is missing{f', as {make_safe(reason)}' if reason else ''}")
            if figure.unit != FIGURES[key].unit:
                raise InvalidRun(f"figures.{key}.unit: must be {FIGURES[key].unit}")
            if figure.value <= 0:
                raise InvalidRun(f"figures.{key}.value: must be more than 0")
            values[key] = figure.value
        return values


def read_run(data: Mapping[str, Any]) -> StoredRun:
    """Read a run.

    Raises:
        InvalidRun: it is none.
    """
    try:
        return StoredRun.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = make_safe(".".join(str(part) for part in first["loc"])) or "the whole"
        reason = "is missing" if first["type"] == "missing" else first["msg"]
        raise InvalidRun(f"{place}: {reason[:1].lower()}{reason[1:]}") from None


def read_run_file(path: Path) -> StoredRun:
    """Read a run from a file that ``python -m tests.bench --json`` wrote.

    Raises:
        InvalidRun: there is none in it.
    """
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise InvalidRun(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise InvalidRun(f"{path} holds no JSON") from None
    return read_run(data)
