"""The crash matrix: kill, pause and restart every process while jobs of all outcomes run.

    python -m tests.crash --rounds 20 --seed 1

One system lives through all rounds: Redis (append-only file, `appendfsync always`) and Triton as
`vitrine up` starts them, two gateways and two workers, all kept running by the real supervisor. In
a round, clients hand in a burst of jobs, some with an idempotency key that they retry with, poll
or follow them (resuming by `Last-Event-ID`), cancel some, and fetch the results, while a few faults hit:
SIGKILL, SIGTERM, or SIGSTOP and later SIGCONT. Then the round waits until every job is final, and
checks from the outside what must hold; see `tests.crash.checks`.

Why `always`: with `everysec` Redis writes to its file before it answers, but not while a sync goes
on that takes its time; then it answers first and writes up to two seconds later. On a busy disk one
SIGKILL of the server in about twenty lost an accepted job here. With `always` none may.
"""
