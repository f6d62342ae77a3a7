"""The job queue: sorted sets in Redis, every transition one atomic script in `lua/`.

    submit ──▶ queued ──claim──▶ running ──finish──▶ succeeded
                │ │ ▲              │ │ │
                │ │ └───release────┘ │ ├──finish──▶ failed (error code)
                │ │                  │ ├──claim───▶ failed (worker_lost, after max_attempts)
                │ │     running ◀────┤ ├──release─▶ failed (a part was down, max_attempts times)
                │ │   (claim, once   │ └──finish──▶ canceled (cancel only asks a running job;
                │ │    the lease     │              release and claim end it so as well)
                │ │    has run out)  └─ renew, progress: running ──▶ running
                │ └──cancel──▶ canceled
                └──expire──▶ expired (not started within queue_ttl)

A job that was never started waits behind the jobs of its own tenant in the same lane and in higher
ones; every eighth start of a tenant is from its lowest. Tenants take turns, whatever their lanes:
priority is over one's own jobs. Where a tenant has `max_running_per_tenant` started jobs, its others
are parked: they have no turn until one of the started ends.

Under one hash tag, `{<queue>}`, lie:

    job:<id>                  hash    the record; expires `record_ttl` after its end
    events:<id>               stream  what followers read behind `queued`, the newest 200; for an hour
    waiting:<lane>            zset    queued jobs by time of submission: depth, expiry
    waiting:<lane>:<tenant>   zset    those never started, in the order of their submission
    turns                     zset    slots, by round: a claim takes the first
    places                    hash    a tenant's slots: the last one's round, how many, their place
    round                     hash    the round being served, places given away; gone when idle
    served                    hash    a tenant's starts since nothing of it waited: the low lane's share
    returned                  zset    jobs that were handed back, by the time they may start again
    running                   zset    jobs by the end of their lease
    started:<tenant>          set     jobs running or handed back, which take a tenant's places
    wake                      list    one element for each worker to wake; none matters
    submitted                 string  counts submissions, whose order it gives
    jobs:<tenant>             zset    ids, which sort by time: listings
    idempotency:...           hash    the job and the request hash of a key
    garbage                   zset    ids by the time from which their objects are to be deleted
    cancel                    channel ids of running jobs that are to be canceled
    janitor:<chore>           string  somebody does it at the moment

A slot is a job's worth of a tenant's turn, not a certain job, so parking and cancelling move none
of the tenant's others, and every transition costs O(log n).

The attempt number is the fencing token: only the newest attempt may write. A lease ends by Redis'
clock. Uploads and results are in object storage, never in Redis, under a key with the attempt in
it. So jobs run at least once and end once: a SIGKILL of any process at any moment costs at most a
repeated run.
"""
