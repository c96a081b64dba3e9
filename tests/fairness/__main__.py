"""``python -m tests.fairness``: every scenario at full size, as a table. ``--help`` tells the rest."""

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.fairness.rows import Row, to_markdown
from tests.fairness.scenarios import SCENARIOS
from tests.fairness.sizes import SIZES


def main() -> int:
    """Run scenarios and print the table; return 1 when a bar was missed, or a scenario broke off."""
    parser = argparse.ArgumentParser(prog="python -m tests.fairness", description="Unfair load, and who notices it.")
    parser.add_argument("--only", nargs="+", metavar="SCENARIO", choices=[each.name for each in SCENARIOS],
                        help="some scenarios only: %(choices)s")  # fmt: skip
    parser.add_argument("--size", choices=SIZES, default="full", help="how much of everything (default: full)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, too")
    arguments = parser.parse_args()
    size, begun = SIZES[arguments.size], time.monotonic()

    def tell(line: str) -> None:
        print(f"{time.monotonic() - begun:6.1f} s  {line}", file=sys.stderr, flush=True)

    folder = Path(tempfile.mkdtemp(prefix="webhooks-fairness-"))
    rows: list[Row] = []
    is_good = True
    for scenario in SCENARIOS:
        if arguments.only and scenario.name not in arguments.only:
            continue
        tell(scenario.name)
        started_at = time.monotonic()
        try:
            found = scenario.run(folder / scenario.name, size, tell)
        except KeyboardInterrupt:
            tell("ending")
            return 130
        except Exception as error:  # whatever it is, the others are worth their figures
            tell(f"{scenario.name}: broke off: {type(error).__name__}: {error}")
            is_good = False
            continue
        rows += found
        missed = [row.what for row in found if not row.is_good]
        tell(f"{scenario.name}: took {time.monotonic() - started_at:.0f} s; missed: {'; '.join(missed) or 'nothing'}")
        is_good = is_good and not any(size.has_failed(row) for row in found)
    if is_good:
        shutil.rmtree(folder)  # the logs are wanted when something failed
    else:
        tell(f"logs: {folder}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([row.to_json() for row in rows], indent=1))
    print(to_markdown(rows))
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
