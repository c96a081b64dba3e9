"""The contract's sample objects, one JSON file each."""

import json
from pathlib import Path
from typing import Any

SAMPLES = Path(__file__).parents[1] / "samples"


def read_sample(name: str) -> dict[str, Any]:
    """Return a sample by its file's name without ``.json``."""
    return json.loads((SAMPLES / f"{name}.json").read_text())
