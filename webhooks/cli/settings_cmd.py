"""``webhooks settings``: the values in force and where they come from, without secrets."""

import json
import os
from typing import Any

import click

from webhooks.cli.options import JSON_OPTION
from webhooks.cli.output import Cell, Table, place_of, print_json
from webhooks.config import PREFIX, Proxy, Settings, get_settings
from webhooks.rules.encryption import fingerprint
from webhooks.worker.digest import Digest

#: Units by the suffix of a setting's name.
_UNITS = {"_s": "seconds", "_bytes": "bytes", "_days": "days"}


@click.command(short_help="Show the settings in force, and the source of each.")
@JSON_OPTION
def settings(as_json: bool) -> None:
    """Show the settings in force in this terminal, and the source of each value.

    Workers have the settings of their own environment. Secrets and keys are shown as fingerprints, which are the same
    on all machines. URLs are shown without credentials.
    """
    rows = [_describe(name, get_settings()) for name in Settings.model_fields]
    if as_json:
        for row in rows:
            print_json(json.dumps(row, ensure_ascii=False))
        return
    Table().print(
        [
            [row["name"], _as_text(row["value"]), row["unit"] or "", Cell(row["from"], _STYLES[row["from"]])]
            for row in rows
        ]
    )


_STYLES = {"default": "dim", "environment": ""}


def _describe(name: str, settings: Settings) -> dict[str, Any]:
    variable = f"{PREFIX}{name.upper()}"
    is_set = variable in {given.upper() for given in os.environ}  # as pydantic reads it
    return {
        "name": variable,
        "value": _shown(name, getattr(settings, name)),
        "unit": next((unit for end, unit in _UNITS.items() if name.endswith(end)), None),
        "from": "environment" if is_set else "default",
    }


def _shown(name: str, value: Any) -> Any:
    """Return a value for JSON, without secrets; None if it is not set."""
    if value is None or value == ():
        return None
    if name in ("encryption_key", "operators_secret"):
        keys = (value,) if isinstance(value, str) else value
        return [f"sha256:{fingerprint(key)}" for key in keys]
    if isinstance(value, Proxy):
        return place_of(value.to_url())
    if name.endswith("_url"):
        # The path of a notification URL may be a secret.
        scheme, place = value.partition("://")[0], place_of(value)
        return f"{scheme}://{place.partition('/')[0] if name == 'operators_url' else place}"
    if isinstance(value, tuple | frozenset):
        return [part if isinstance(part, int) else str(part) for part in sorted(value, key=_order)]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int | float) else str(value)


def _order(part: Any) -> Any:
    return part if isinstance(part, int) else (part.version, part)


def _as_text(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, list):
        # A worker's digest has the ports in the form of the setting.
        return ",".join(value) if isinstance(value[0], str) else str(Digest.of(get_settings()).allowed_ports)
    return str(value).lower() if isinstance(value, bool) else str(value)
