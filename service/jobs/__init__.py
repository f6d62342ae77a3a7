"""The job queue: Redis Streams consumer groups, every transition one atomic script in `lua/`.

    submit ──▶ queued ──claim──▶ running ──finish──▶ succeeded
                │ │ ▲              │ │ │
                │ │ └───release────┘ │ ├──finish──▶ failed (error code)
                │ │                  │ ├──claim───▶ failed (worker_lost, after max_attempts)
                │ │     running ◀────┤ ├──release─▶ failed (a part was down, max_attempts times)
                │ │   (claim, once   │ └──finish──▶ canceled (cancel only asks a running job)
                │ │    the lease     │
                │ │    has run out)  └─ renew, progress: running ──▶ running
                │ └──cancel──▶ canceled
                └──expire──▶ expired (not started within queue_ttl)

Under one hash tag, `{<queue>}`, lie:

    job:<id>          hash     the record; expires `record_ttl` after its end
    events:<id>       stream   what followers read, the newest 200
    lane:<lane>       stream   entries of waiting and running jobs; group `workers`
    waiting:<lane>    zset     ids by time of submission: position, depth, expiry
    running           zset     ids by time of start
    jobs:<tenant>     zset     ids, which sort by time: listings
    idempotency:...   hash     the job and the request hash of a key
    garbage           zset     ids by the time from which their objects are to be deleted
    cancel            channel  ids of running jobs that are to be canceled

The attempt number is the fencing token: only the newest attempt may write. A worker's lease is the
idle time of its entry in the group's pending list, by Redis' clock. Uploads and results are in
object storage, never in Redis, under a key with the attempt in it. So jobs run at least once and
end once: a SIGKILL of any process at any moment costs at most a repeated run.
"""
