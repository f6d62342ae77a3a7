"""`python -m tests.fidelity FILE.json ...`: one line a file, exit status 1 if any differs.

SLUG VARIANT worst-relative-error PASS|FAIL [first differing output]
"""

from __future__ import annotations

import argparse
import math
import sys
import traceback
from pathlib import Path

import torch

from tests.fidelity.cases import case
from tests.fidelity.comparison import Comparison, compare
from tests.fidelity.golden import Golden


def check(golden: Golden) -> Comparison:
    """Run a paper's case in float32 on the CPU and compare it with the file."""
    with torch.inference_mode():
        return compare(golden, case(golden.slug)(golden))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fidelity", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.json")
    failed = False
    for path in parser.parse_args(arguments).files:
        golden = Golden.read(path)
        try:
            result = check(golden)
        except Exception as fault:  # one broken case must not hide the other files' results
            traceback.print_exc(file=sys.stderr)
            result = Comparison(math.inf, f"{type(fault).__name__}: {fault}".splitlines()[0])
        words = [golden.slug, golden.variant, f"{result.worst:.3g}"]
        words += ["PASS"] if result.passed else ["FAIL", str(result.first_difference)]
        print(*words, flush=True)
        failed |= not result.passed
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
