"""The command ``webhooks``, also as ``python -m webhooks``."""

import gc
import sys
from importlib import import_module

from webhooks.errors import NotInstalled
from webhooks.producer.extras import require


def main() -> None:
    """Run the command; where only the producer is installed, say in one line which packages are missing."""
    try:
        require("worker")
    except NotInstalled as error:
        sys.exit(f"webhooks: {error}")
    # Everything imported here lives until the end: to look through it again and again, also at the end, takes a quarter
    # of a short command's time.
    gc.disable()
    cli = import_module("webhooks.cli")
    gc.freeze()
    gc.enable()
    cli.main()


if __name__ == "__main__":
    main()
