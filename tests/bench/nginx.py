"""nginx as a receiver: whether it is there, and how it is to be run.

Owns its configuration, which is that of one process at one address with all files in a folder of its own. Never
starts it for longer than a look at its version: `receivers` does that. Its paths are those of `receiver`.
"""

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

#: In Debian's ``libnginx-mod-http-echo``: answers that come late, which nginx itself has none of.
_ECHO = "ngx_http_echo_module.so"
_MAX_BODY = "1m"
_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


@dataclass(frozen=True, slots=True)
class Nginx:
    """An nginx that is installed."""

    path: Path
    version: str
    #: The module for late answers; None where it is not installed.
    echo: Path | None

    def command(self, folder: Path) -> list[str]:
        """Return its command line, for a folder in which `configuration` is ``nginx.conf``."""
        return [str(self.path), "-p", str(folder), "-c", "nginx.conf", "-e", "error.log"]

    def configuration(self, address: str, ports: Sequence[int], delay_s: float) -> str:
        """Write its configuration: the same paths at each of the ports.

        Args:
            address: where it listens, and nowhere else.
            ports: there.
            delay_s: what ``/slow`` takes. There is no such path without the module.
        """
        listen = "\n".join(f"    listen {address}:{port} backlog=4096;" for port in ports)
        temporary = "\n".join(f"  {name}_temp_path {name};" for name in _TEMPORARY)
        late = f"""
    location /slow {{ echo_sleep {delay_s:g}; echo -n ok; }}
    location /hang {{ echo_sleep 86400; echo -n ok; }}"""
        return f"""{f"load_module {self.echo};" if self.echo else ""}
daemon off;
# One process, which Linux ends with its parent: no second one that could be left behind.
master_process off;
pid nginx.pid;
error_log error.log;
worker_rlimit_nofile 16384;
events {{ worker_connections 8192; }}
http {{
{temporary}
  access_log off;
  keepalive_timeout 1h;
  keepalive_requests 1000000000;
  client_body_buffer_size {_MAX_BODY};
  client_max_body_size {_MAX_BODY};
  tcp_nodelay on;
  server {{
{listen}
    location / {{ return 200 ok; }}{late if self.echo else ""}
  }}
}}
"""


def find_nginx() -> Nginx | None:
    """Find an nginx on the PATH; None where there is none that runs."""
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")  # not on everybody's PATH
    if found is None:
        return None
    try:
        done = subprocess.run([found, "-V"], capture_output=True, text=True, errors="replace", timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    version = re.search(r"nginx/(\S+)", done.stderr)
    if done.returncode or not version:
        return None
    modules = re.search(r"--modules-path=(\S+)", done.stderr)
    echo = Path(modules[1]) / _ECHO if modules else None
    return Nginx(Path(found), version[1], echo if echo and echo.is_file() else None)
