"""``webhooks settings``: what is in force here, and where each value comes from. Shows no secret."""

import json
import os
from typing import Any

import click

from webhooks.cli.common import Cell, Table, json_option, place_of, print_json
from webhooks.config import PREFIX, Proxy, Settings, get_settings
from webhooks.rules.encryption import fingerprint

#: By the end of a setting's name.
_UNITS = {"_s": "seconds", "_bytes": "bytes", "_days": "days"}


@click.command(short_help="Show the settings in force, and where each comes from.")
@json_option
def settings(as_json: bool) -> None:
    """Show the settings that are in force in this terminal, and where each value comes from.

    Workers have those of their own environment. Of secrets and keys only a fingerprint is shown, which is the same
    wherever the key is; of URLs, where they lead.
    """
    rows = [_describe(name, get_settings()) for name in Settings.model_fields]
    if as_json:
        for row in rows:
            print_json(json.dumps(row, ensure_ascii=False))
        return
    shown = [
        [row["name"], _as_text(row["value"]), row["unit"] or "", Cell(row["from"], _STYLES[row["from"]])]
        for row in rows
    ]
    Table().print(shown)


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
    """Return what may be shown of a value, as JSON has it; None where nothing is set."""
    if value is None or value == ():
        return None
    if name in ("encryption_key", "operators_secret"):
        keys = (value,) if isinstance(value, str) else value
        return [f"sha256:{fingerprint(key)}" for key in keys]
    if isinstance(value, Proxy):
        return place_of(value.to_url())
    if name.endswith("_url"):
        # Beyond the host, a URL that operators are told at may be a secret as a whole.
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
        return ",".join(_ranges(value) if isinstance(value[0], int) else value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _ranges(ports: list[int]) -> list[str]:
    """Write ascending ports as the setting has them, such as ``80`` and ``8000-8999``."""
    found: list[list[int]] = []
    for port in ports:
        if found and found[-1][1] == port - 1:
            found[-1][1] = port
        else:
            found.append([port, port])
    return [str(first) if first == last else f"{first}-{last}" for first, last in found]
