"""Is it there? `python -m service.observability.probe URL [--wait SECONDS]`, for health checks in containers.

Ends with status 0 once `URL` answers 200, else with 1 and one line that says why. Imports nothing
beyond the standard library, since an orchestrator runs it every few seconds.
"""

from __future__ import annotations

import argparse
import sys
import time
import urllib.error
import urllib.request

_TIMEOUT_S = 3.0
_PAUSE_S = 0.5


def fault(url: str, timeout_s: float = _TIMEOUT_S) -> str | None:
    """Return why `url` does not answer 200, or None if it does. Proxies are not asked."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=timeout_s) as response:
            return None if response.status == 200 else f"status {response.status}"
    except urllib.error.HTTPError as error:
        with error:
            return f"status {error.code}: {error.read(500).decode('utf-8', 'replace').strip()}"
    except urllib.error.URLError as error:
        return str(error.reason)
    except OSError as error:
        return str(error)


def main(arguments: list[str] | None = None) -> int:
    """Probe once, or until it answers; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m service.observability.probe",
        description="End with status 0 when a URL answers 200, else with 1 and the reason.",
    )
    parser.add_argument("url", help="such as http://127.0.0.1:8000/livez")
    parser.add_argument(
        "--wait", type=float, default=0.0, metavar="SECONDS", help="try again for this long"
    )
    given = parser.parse_args(arguments)
    deadline = time.monotonic() + given.wait
    while (reason := fault(given.url)) is not None:
        if time.monotonic() >= deadline:
            print(f"{given.url}: {reason}", file=sys.stderr)
            return 1
        time.sleep(_PAUSE_S)
    return 0


if __name__ == "__main__":
    sys.exit(main())
