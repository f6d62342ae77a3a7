"""`python -m deploy.grafana` writes deploy/grafana/dashboards/*.json; --check only compares."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from deploy.grafana.boards import DASHBOARDS

FOLDER = Path(__file__).parent / "dashboards"


def files() -> dict[Path, str]:
    """Return the text of every dashboard's file."""
    return {
        FOLDER / f"{board.uid}.json": json.dumps(board.document(), indent=1) + "\n"
        for board in DASHBOARDS
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m deploy.grafana", description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if a file is not up to date")
    check = parser.parse_args().check
    written = files()
    stale = [
        path for path, text in written.items() if not path.exists() or path.read_text() != text
    ]
    stale += [path for path in FOLDER.glob("*.json") if path not in written]
    if check and stale:
        sys.exit(f"run python -m deploy.grafana: {', '.join(path.name for path in stale)}")
    for path in stale:
        if path in written:
            path.write_text(written[path])
        else:
            path.unlink()


if __name__ == "__main__":
    main()
