"""``python -m tests.faults``: the fault matrix at full size, as a table. ``--help`` tells the rest."""

import argparse
import json
import sys
import threading
import time
from pathlib import Path

from tests.faults.matrix import Result, run_matrix, to_line, to_markdown
from tests.faults.rows import ROWS
from tests.faults.sizes import SIZES


def main() -> int:
    """Run rows and print the table; return 1 when one failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="Break things under load, and count.")
    parser.add_argument("--only", nargs="+", metavar="ROW", choices=[row.id for row in ROWS], help="some rows only")
    parser.add_argument("--size", choices=SIZES, default="full", help="how much of everything (default: full)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was counted there, too")
    arguments = parser.parse_args()
    rows = [row for row in ROWS if not arguments.only or row.id in arguments.only]
    size, begun = SIZES[arguments.size], time.monotonic()

    def tell(line: str) -> None:
        print(f"{time.monotonic() - begun:6.1f} s  {line}", file=sys.stderr, flush=True)

    cancelled = threading.Event()
    started = run_matrix(rows, size, tell=tell, cancelled=cancelled)
    results: list[Result] = []
    is_good = True
    try:
        for future in started.values():
            try:
                results.append(future.result())
            except Exception:  # `tell` has said which one and why
                is_good = False
    except KeyboardInterrupt:
        tell("ending")
        return 130
    finally:
        cancelled.set()  # those that run still; all end their processes before Python itself ends
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([result.to_json() for result in results], indent=1))
    print(to_markdown(to_line(result, size) for result in results))
    return 0 if is_good and not any(result.faults for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
