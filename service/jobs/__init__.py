"""The job queue: Redis Streams consumer groups, every transition one atomic Lua script.

    submit ──▶ queued ──claim──▶ running ──finish──▶ succeeded
                 │  ▲               │ │
                 │  └──take-over────┘ ├──fail──▶ failed (error code; worker_lost after max_attempts)
                 │   (lease expired)  └──cancel──▶ canceled
                 ├──cancel──▶ canceled
                 └──expire──▶ expired (not started in time)

A job's record (hash), its lane (stream), the events that clients follow (stream) and the
idempotency key live under one hash tag. Uploads and results are in object storage, never in Redis.
The attempt number is the fencing token: only the newest attempt may finish a job.
"""
