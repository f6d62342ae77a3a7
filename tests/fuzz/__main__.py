"""Fuzz the media decoders: damaged pictures and videos, each on the way that a request's upload takes.

    python -m tests.fuzz --inputs 10000 --seed 1

Every file must end as decoded pixels or as a refusal with a 4xx code: no other exception, no
crash, no hang, no memory beyond the limit. Ends with status 1 where one did not; such files are
minimised and kept, and `--replay FILE` runs one again.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from tests.fuzz.campaign import run
from tests.fuzz.children import Child
from tests.fuzz.report import markdown
from tests.fuzz.seeds import seeds


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--inputs", type=int, default=1000, help="number of files (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the damage (default 0)")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)"
    )
    parser.add_argument(
        "--keep", type=Path, default=Path("fuzz-failures"), help="folder for files that fail"
    )
    parser.add_argument("--report", type=Path, help="write the figures there, as Markdown")
    parser.add_argument("--replay", type=Path, help="decode this one file and say what came of it")
    options = parser.parse_args()
    if options.replay:
        child = Child()
        verdict = child.examine(options.replay.read_bytes())
        child.stop()
        print(f"{verdict.failure}: {verdict.detail}" if verdict.failure else verdict.outcome)
        return 1 if verdict.failure else 0
    campaign = run(options.seed, options.inputs, seeds(), options.workers, options.keep)
    report = markdown(campaign)
    print(report)
    if options.report:
        options.report.write_text(report)
    return 1 if campaign.failures else 0


if __name__ == "__main__":
    sys.exit(main())
