"""Does a network compute what the authors' network computes?

    python -m tests.fidelity FILE.json [FILE.json ...]

A golden file records what the reference code of a paper answers when its weights and its inputs are
functions of names, shapes and seeds alone (`golden.py`). `cases/<slug>.py` rebuilds the network from
the file, `comparison.py` measures how far its outputs are from the recorded ones.
"""
