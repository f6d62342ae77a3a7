"""The crash matrix: kill, pause and restart every process while jobs of all outcomes run.

    python -m tests.crash --rounds 20 --seed 1

One system lives through all rounds: Redis (append-only file, `appendfsync everysec`) and Triton as
`vitrine up` starts them, two gateways and two workers, all kept running by the real supervisor. In
a round, clients hand in a burst of jobs, some with an idempotency key that they retry with, poll
or follow them (resuming by `Last-Event-ID`), cancel some, and fetch the results, while a few faults hit:
SIGKILL, SIGTERM, or SIGSTOP and later SIGCONT. Then the round waits until every job is final, and
checks from the outside what must hold; see `tests.crash.checks`.

On the loss of acknowledged writes: `everysec` writes each command to the file before it answers, and
leaves syncing to a thread. So the death of the server alone loses nothing that was answered, unless a
sync takes so long that Redis puts off the write (at most two seconds); only the death of the
machine loses up to a second.
"""
