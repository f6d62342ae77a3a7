"""`vitrine up` without its face: one parent that runs Redis, Triton, the worker and the gateway.

    supervisor ─┬─ redis-server     data under <data-dir>/redis, append-only file
                ├─ tritonserver ─── one stub process a model
                ├─ worker           python -m service.jobs.worker
                └─ gateway          python -m service.app

Each child leads a session of its own, so that Ctrl-C reaches the supervisor alone and a whole
family can be ended at once. A child that ends is started again with exponential back-off.
Stopping goes against the flow of requests: gateway, worker, Triton, Redis. The kernel ends the children
when the supervisor is killed.
"""
