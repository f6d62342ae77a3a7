"""An hour of moderate mixed load against `vitrine up`, and what it leaves behind in memory.

    nice python -m load_tests.soak [--minutes 60] [--rate 1.0]

Pictures are classified, clips judged, pictures generated as jobs that are polled, followed or
cancelled, a model is loaded and unloaded, and every tenth request is wrong. Meanwhile the resident
memory, open files and threads of every process, Redis' memory and keys, and the objects in storage
are sampled every ten seconds. Records and results live for five minutes only, so that whatever is
meant to be kept for a time reaches its level early in the run; what still grows afterwards leaks.
Results go to load_tests/results/soak.{json,md,svg}.
"""
