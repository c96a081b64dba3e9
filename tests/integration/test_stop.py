"""Being told to stop, more often than once."""

import signal
import subprocess
import sys

#: Waits as a worker's threads do, until it is told to stop as Celery tells it.
_PROGRAM = """
import signal, threading
from celery.signals import worker_shutting_down
import webhooks.worker.startup
from webhooks.delivery.stopping import stopping

signal.signal(signal.SIGTERM, lambda *_: worker_shutting_down.send(sender="x", sig="SIGTERM", how="Warm", exitcode=0))
threading.Thread(target=stopping.wait, daemon=True).start()
print("ready", flush=True)
while not stopping.is_set():
    signal.sigtimedwait([], 0.01)
"""
_SIGNALS = 200


def test_signals_that_come_while_one_is_handled_do_not_keep_it_from_ending():
    """Without care 56 of 60 such programs waited for a lock that they held themselves."""
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", _PROGRAM], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            for _ in range(_SIGNALS):
                process.send_signal(signal.SIGTERM)
            try:
                assert process.wait(10) == 0
            finally:
                process.kill()
