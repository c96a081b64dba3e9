"""An endpoint that is down for long: its webhook is paused, and drains at a growing rate when the endpoint is back.

One worker. The endpoint is down under load until its webhook is paused; then many more events come for it. It comes
back as receivers do that have been down: it bears only so many requests a second as it is used to, and some more.
"""

import time
from pathlib import Path
from typing import Any

from tests.fairness.judge import Arrival, most_in_flight, per_second
from tests.fairness.producer import Plan
from tests.fairness.receiver import Behaviour
from tests.fairness.rows import Row, at_most, known, must, none_of
from tests.fairness.sizes import Size, Tell
from tests.fairness.stage import Hook, Stage

NAME = "pause"

_PAUSE_AFTER_S = 5
_PROBE_INTERVAL_S = 2
_TIMEOUT_S = 2
#: Events per second while it goes down. Few, so that none of them holds a worker up.
_LOAD_PER_S = 10.0
#: For the workers to learn of the pause, and for what is in flight then to end.
_GRACE_S = 1.0 + _TIMEOUT_S
#: From the endpoint's going down, in all.
_PAUSED_WITHIN_S = 6.0 * _PAUSE_AFTER_S
_DRAINED_WITHIN_S = 600.0
_NOISY_DRAINED_WITHIN_S = 25.0
#: How many of its first seconds the table shows.
_SHOWN_S = 10
_DOWN = {"answer": Behaviour(status=503), "hang": Behaviour("hang")}
_WAKING = Behaviour("waking", delay_s=0.02)
#: What the collection `gates` says of a webhook.
_PAUSED = "paused"


def run(folder: Path, size: Size, tell: Tell) -> list[Row]:
    """Run it."""
    settings = {
        "total_timeout_s": _TIMEOUT_S,
        "mongodb_timeout_s": size.mongodb_timeout_s,
        "retry_delay_s": 3,
        "sweep_interval_s": 1,
        "pause_after_s": _PAUSE_AFTER_S,
        # An endpoint that hangs has a share of one attempt at a time soon, and so makes few.
        "pause_min_attempts": 4,
        "probe_interval_s": _PROBE_INTERVAL_S,
    }
    rows: list[Row] = []
    with Stage(folder, settings) as stage:
        for down in size.downs:
            rows += _run(stage, size, tell, down)
    return rows


def _run(stage: Stage, size: Size, tell: Tell, down: str) -> list[Row]:
    stage.reset()
    about = {"answer": "503", "hang": "hangs"}[down]
    hook = Hook("/endpoint")
    stage.add([hook])
    stage.behave(Behaviour(), hook.path)
    stage.start_workers(1)
    load = stage.start_producer(Plan((hook.stream(),), _LOAD_PER_S))
    if not stage.run_until(lambda: stage.count(hook.path, "ok") >= _LOAD_PER_S, 30):
        raise AssertionError(f"nothing arrived; see {stage.folder}")
    stage.behave(_DOWN[down], hook.path)
    down_at = time.monotonic()
    is_paused = stage.run_until(lambda: _state(stage, hook) == _PAUSED, _PAUSED_WITHIN_S)
    paused_at = time.monotonic()
    load.stop()
    tell(f"{NAME}: {about}: {'paused' if is_paused else 'not paused'} after {paused_at - down_at:.1f} s")
    rows = [must(NAME, f"{about}: paused, s after it went down", paused_at - down_at if is_paused else "never",
                 is_paused)]  # fmt: skip
    if not is_paused:
        return rows
    stage.run_for(_GRACE_S)
    return rows + _drain(stage, size, tell, hook, about)


def _drain(stage: Stage, size: Size, tell: Tell, hook: Hook, about: str) -> list[Row]:
    begun = time.monotonic()
    first = 1_000_000  # of the events to be kept; far from those of the load
    kept, _ = stage.queue([hook.stream()], size.kept_events, first)
    ledger = stage.database["deliveries"]
    stage.run_while_growing(lambda: ledger.count_documents({"webhook_id": hook.id}), len(kept), size.patience_s, 300)
    in_ledger = ledger.count_documents({"webhook_id": hook.id})
    stage.run_for(max(0.0, size.paused_s - (time.monotonic() - begun)))
    stage.behave(_WAKING, hook.path)
    up_at = time.monotonic()
    tell(f"{NAME}: {about}: {in_ledger:,} kept after {up_at - begun:.0f} s; the endpoint is up")
    states: list[str | None] = []

    def count() -> int:
        state = _state(stage, hook)
        if state != (states[-1] if states else ""):
            states.append(state)
        return stage.count(hook.path, "ok")

    at_most_s = _NOISY_DRAINED_WITHIN_S if size.is_noisy else _DRAINED_WITHIN_S
    # Those of the load that are owed still come as well: it is over when the ledger is empty.
    stage.run_while_growing(count, count() + in_ledger, size.patience_s, at_most_s)
    stage.run_until(lambda: ledger.count_documents({"webhook_id": hook.id}) == 0, size.patience_s)
    count()
    rows = _judge(about, stage.arrivals(), kept, (begun, up_at))
    tell(f"{NAME}: {about}: states {states}")
    # The first one was still paused.
    again = [state for state in states[1:] if state == _PAUSED]
    return [
        *rows,
        known(NAME, f"{about}: owed by the ledger, of {len(kept):,} and the load's", in_ledger),
        # A machine that stands still for a second sends what it let out then in the next one.
        at_most(NAME, f"{about}: outages of the waking receiver", stage.count(hook.path, "outages"), 0,
                noisy=len(kept) / 10),
        none_of(NAME, f"{about}: paused again", again),
        known(NAME, f"{about}: states", " → ".join(str(state) for state in states)),
    ]  # fmt: skip


def _judge(about: str, arrivals: list[Arrival], kept: dict[int, float], paused: tuple[float, float]) -> list[Row]:
    """Judge what came while it was paused, and after.

    Args:
        about: how the endpoint was down.
        arrivals: of the whole run, at the endpoint.
        kept: numbers of the events that came while it was paused.
        paused: from when to when it was down and surely paused.
    """
    since, up_at = paused
    probes = [arrival for arrival in arrivals if since <= arrival.arrived_at < up_at]
    after = [arrival for arrival in arrivals if arrival.arrived_at >= up_at]
    ok = [arrival for arrival in after if arrival.is_ok]
    ok_numbers = {arrival.number for arrival in ok}
    # A probe each interval, and one at each end.
    most_probes = (up_at - since) / _PROBE_INTERVAL_S + 2
    first_at = min((arrival.arrived_at for arrival in ok), default=float("inf"))
    last_at = max((arrival.arrived_at for arrival in ok), default=float("inf"))
    shown: Any = ", ".join(map(str, per_second(ok, first_at, _SHOWN_S))) if ok else "nothing"
    return [
        at_most(NAME, f"{about}: attempts in {up_at - since:.0f} s while paused", len(probes), most_probes,
                noisy=2 * most_probes),
        must(NAME, f"{about}: probed while paused", len(probes), len(probes) > 0),
        at_most(NAME, f"{about}: most in flight while paused", most_in_flight(arrivals, since, up_at), 1, noisy=1),
        none_of(NAME, f"{about}: lost of {len(kept):,} kept", sorted(set(kept) - ok_numbers)),
        known(NAME, f"{about}: arrived more than once", len(ok) - len(ok_numbers)),
        known(NAME, f"{about}: first success, s after it was up", first_at - up_at),
        known(NAME, f"{about}: drained, s after it was up", last_at - up_at),
        known(NAME, f"{about}: successes/s in the first {_SHOWN_S} s", shown),
    ]  # fmt: skip


def _state(stage: Stage, hook: Hook) -> str | None:
    """Return what the product says of a webhook's state; None before it says anything."""
    gate = stage.database["gates"].find_one({"_id": hook.id}) or {}
    return gate.get("state")
