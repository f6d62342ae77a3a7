"""The queue against a model of it: any sequence of clients, workers, deaths and late calls.

Time does not pass by itself here: leases run out and jobs grow old where a rule says so.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from service.errors import IdempotencyConflict
from service.jobs.consumer import Claim, Lease, LeaseLost
from service.jobs.queue import Queue
from service.jobs.record import Job, JobError, JobProgress, JobResult, Lane, State
from service.settings import JobSettings, RedisSettings
from tests.jobs.conftest import lease_over, submission, unfinished
from tests.jobs.redis_server import RedisServer

T = TypeVar("T")

MAX_ATTEMPTS = 2
MAX_RUNNING = 2
TENANTS = ("a", "b", "c")
LEASE_S = 3600.0
WORKERS = st.sampled_from(["w1", "w2", "w3"])
ERROR = JobError(code="model_failed", message="It broke.")


@dataclass
class Model:
    """What a job should be. `due`: a claim may take it over; `old`: it is past `queue_ttl_s`."""

    tenant: str
    lane: Lane
    state: State = State.QUEUED
    attempt: int = 0
    failures: int = 0
    cancel: bool = False
    due: bool = False
    old: bool = False

    def holds(self, claim: Claim) -> bool:
        return self.state is State.RUNNING and self.attempt == claim.job.attempt

    @property
    def started(self) -> bool:
        """Whether it takes one of its tenant's places."""
        return self.attempt > 0 and not self.state.final

    @property
    def fresh(self) -> bool:
        return self.state is State.QUEUED and self.attempt == 0

    @property
    def settles_as(self) -> State | None:
        """The final state that a claim brings it to instead of starting it."""
        if self.fresh and self.old:
            return State.EXPIRED
        if self.state is State.RUNNING and self.cancel:
            return State.CANCELED
        if self.state is State.RUNNING and self.failures + 1 >= MAX_ATTEMPTS:
            return State.FAILED
        return None


class QueueMachine(RuleBasedStateMachine):
    jobs = Bundle("jobs")
    claims = Bundle("claims")

    def __init__(self, url: str) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.queue = Queue(
            RedisSettings(url=url, queue=f"machine-{secrets.token_hex(6)}", connect_timeout_s=60),
            JobSettings(
                max_attempts=MAX_ATTEMPTS, lease_s=LEASE_S, max_running_per_tenant=MAX_RUNNING
            ),
        )
        self.model: dict[str, Model] = {}
        self.keys: dict[str, tuple[str, str]] = {}
        self.claimed = 0
        self.served: dict[str, int] = {}
        self.starts: dict[str, int] = {}
        self.waits_since: dict[str, int] = {}

    def room(self, tenant: str) -> int:
        """How many more jobs the tenant may start."""
        taken = sum(model.started for model in self.model.values() if model.tenant == tenant)
        return MAX_RUNNING - taken

    def waiting(self, tenant: str, lanes: Sequence[Lane] = tuple(Lane)) -> list[str]:
        """The tenant's jobs that were never started, by lane, then in the order of their submission."""
        return [
            job_id
            for lane in lanes
            for job_id, model in self.model.items()
            if (model.tenant, model.lane) == (tenant, lane) and model.fresh
        ]

    def claimable(self, model: Model) -> bool:
        """Whether a claim must either start it or settle it."""
        if model.fresh:
            return self.room(model.tenant) > 0
        return not model.state.final and model.due

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(coroutine)

    # Clients

    @rule(target=jobs, lane=st.sampled_from(Lane), tenant=st.sampled_from(TENANTS))
    def submit(self, lane: Lane, tenant: str) -> str:
        job = self.run(self.queue.submit(submission(lane=lane, tenant=tenant)))
        self.model[job.id] = Model(tenant, lane)
        return job.id

    @rule(
        target=jobs,
        lane=st.sampled_from(Lane),
        tenant=st.sampled_from(TENANTS),
        count=st.integers(2, 5),
    )
    def flood(self, lane: Lane, tenant: str, count: int) -> Any:
        return multiple(*(self.submit(lane, tenant) for _ in range(count)))

    @rule(target=jobs, key=st.sampled_from("ab"), request=st.sampled_from("xy"))
    def submit_with_key(self, key: str, request: str) -> Any:
        made = submission(idempotency_key=key, request_hash=request)
        known = self.keys.get(key)
        if known is not None and known[1] != request:
            with pytest.raises(IdempotencyConflict):
                self.run(self.queue.submit(made))
            return multiple()
        job = self.run(self.queue.submit(made))
        if known is not None:
            assert job.id == known[0]
            return multiple()
        assert job.id == made.id
        self.keys[key] = (job.id, request)
        self.model[job.id] = Model("local", Lane.NORMAL)
        return job.id

    @rule(job_id=jobs)
    def cancel(self, job_id: str) -> None:
        job, model = self.run(self.queue.cancel(job_id)), self.model[job_id]
        if model.state is State.QUEUED:
            model.state = State.CANCELED
        elif model.state is State.RUNNING:
            model.cancel = True
        assert job.state is model.state

    # Workers

    @rule(target=claims, worker=WORKERS)
    def claim(self, worker: str) -> Any:
        claim = self.run(self.queue.consumer(worker).claim())
        for job_id, model in self.model.items():
            end = model.settles_as
            if end is not None and (model.fresh or model.due):
                state = self.run(self.queue.get(job_id)).state
                assert state in (model.state, end)
                if state is end:
                    if end is State.FAILED:
                        model.failures += 1
                    model.state = end
        if claim is None:
            # Neither is anything left to start nor to settle.
            assert not any(map(self.claimable, self.model.values()))
            return multiple()
        model = self.model[claim.job.id]
        assert self.claimable(model)
        assert model.settles_as is None
        if model.fresh:
            self.expect_turn(claim.job.id, model)
        elif model.state is State.RUNNING:
            model.failures += 1
        model.state, model.due = State.RUNNING, False
        model.attempt += 1
        assert claim.job.attempt == model.attempt
        return claim

    def expect_turn(self, job_id: str, model: Model) -> None:
        """What is due goes before what is new; tenants take turns; a tenant's jobs go in their order."""
        assert not any(other.due and self.claimable(other) for other in self.model.values())
        mine = model.tenant
        self.starts[mine] = self.starts.get(mine, 0) + 1
        lanes = tuple(reversed(Lane)) if self.starts[mine] % 8 == 0 else tuple(Lane)
        assert self.waiting(mine, lanes)[0] == job_id
        self.claimed += 1
        before = self.served.get(mine, 0)
        for other, since in self.waits_since.items():
            if other != mine and since < before:
                assert self.served.get(other, 0) > before, f"{mine} twice while {other} waited"
        self.served[mine] = self.claimed

    @rule(claim=claims, worker=WORKERS)
    def renew(self, claim: Claim, worker: str) -> None:
        model = self.model[claim.job.id]
        lease = self.run(self.queue.consumer(worker).renew(claim))
        self.expect_lease(model, claim, lease)
        if lease is not Lease.LOST:
            model.due = False

    @rule(claim=claims)
    def progress(self, claim: Claim) -> None:
        written = JobProgress(step=claim.job.attempt)
        lease = self.run(self.queue.consumer("w1").progress(claim, written))
        self.expect_lease(self.model[claim.job.id], claim, lease)

    def expect_lease(self, model: Model, claim: Claim, lease: Lease) -> None:
        if not model.holds(claim):
            assert lease is Lease.LOST
        else:
            assert lease is (Lease.CANCEL if model.cancel else Lease.HELD)

    @rule(claim=claims, end=st.sampled_from([State.SUCCEEDED, State.FAILED, State.CANCELED]))
    def finish(self, claim: Claim, end: State) -> None:
        consumer, model = self.queue.consumer("w1"), self.model[claim.job.id]
        calls: dict[State, Coroutine[Any, Any, Job]] = {
            State.SUCCEEDED: consumer.succeed(claim, JobResult(prefix="results/x")),
            State.FAILED: consumer.fail(claim, ERROR),
            State.CANCELED: consumer.cancel(claim),
        }
        call = calls.pop(end)
        for other in calls.values():
            other.close()
        repeated = model.state is end and model.attempt == claim.job.attempt
        if model.holds(claim) or repeated:
            assert self.run(call).state is end
            model.state = end
        else:
            with pytest.raises(LeaseLost):
                self.run(call)

    @rule(claim=claims, failed=st.booleans(), delay_s=st.sampled_from([0.0, LEASE_S]))
    def release(self, claim: Claim, failed: bool, delay_s: float) -> None:
        model = self.model[claim.job.id]
        call = self.queue.consumer("w1").release(
            claim, failure=ERROR if failed else None, delay_s=delay_s
        )
        if not model.holds(claim):
            with pytest.raises(LeaseLost):
                self.run(call)
            return
        self.run(call)
        if model.cancel:
            model.state = State.CANCELED
            return
        model.failures += failed
        if failed and model.failures >= MAX_ATTEMPTS:
            model.state = State.FAILED
        else:
            model.state, model.due = State.QUEUED, delay_s == 0.0

    @rule(worker=WORKERS)
    def leave(self, worker: str) -> None:
        self.run(self.queue.consumer(worker).leave())

    # Time

    @rule(claim=claims)
    def lease_runs_out(self, claim: Claim) -> None:
        model = self.model[claim.job.id]
        handed_back = model.state is State.QUEUED and model.attempt > 0
        if model.state is State.RUNNING or handed_back:
            self.run(lease_over(self.queue, claim))
            model.due = True

    @rule(claim=consumes(claims))
    def worker_dies(self, claim: Claim) -> None:
        """Nothing more is heard of this claim, but for its lease."""
        model = self.model[claim.job.id]
        if model.holds(claim):
            self.run(lease_over(self.queue, claim))
            model.due = True

    @rule(job_id=jobs)
    def grow_old(self, job_id: str) -> None:
        model = self.model[job_id]
        if model.state is State.QUEUED and not model.old:
            connection = self.queue.connection
            self.run(connection.client.hset(connection.key("job", job_id), "created", "1"))
            waiting = connection.key("waiting", model.lane)
            self.run(connection.client.zadd(waiting, {job_id: 1}))
            model.old = True

    @rule()
    def expire(self) -> None:
        self.run(self.queue.connection.run("expire"))
        for model in self.model.values():
            if model.settles_as is State.EXPIRED:
                model.state = State.EXPIRED

    # What always holds

    @invariant()
    def jobs_are_as_the_model_says(self) -> None:
        positions = []
        parked = self.parked()
        page = self.run(self.queue.list(None, limit=1000))
        assert page.cursor is None
        assert {job.id for job in page.jobs} == self.model.keys()
        for job in page.jobs:
            model = self.model[job.id]
            assert (job.state, job.attempt, job.failures, job.cancel_requested) == (
                model.state,
                model.attempt,
                model.failures,
                model.cancel,
            )
            assert (job.queue_position is None) == (model.state is not State.QUEUED)
            assert (job.finished_at is None) != model.state.final
            if job.queue_position is not None and job.id not in parked:
                positions.append(job.queue_position)
        assert sorted(positions) == list(range(1, len(positions) + 1))

    def parked(self) -> set[str]:
        return {
            job_id
            for tenant in (*TENANTS, "local")
            for job_id in self.waiting(tenant)[self.room(tenant) :]
        }

    @invariant()
    def caps_hold(self) -> None:
        assert all(self.room(tenant) >= 0 for tenant in (*TENANTS, "local"))

    @invariant()
    def waiting_is_remembered(self) -> None:
        """For `expect_turn`: since which claim each tenant has had a job that might start."""
        waiting = {model.tenant for model in self.model.values() if model.fresh}
        self.starts = {who: count for who, count in self.starts.items() if who in waiting}
        self.waits_since = {
            who: self.waits_since.get(who, self.claimed) for who in waiting if self.room(who) > 0
        }

    @invariant()
    def counts_are_as_the_model_says(self) -> None:
        depth = self.run(self.queue.depth())
        states = [(model.state, model.lane) for model in self.model.values()]
        assert depth.running == sum(state is State.RUNNING for state, _ in states)
        for lane in Lane:
            assert depth.waiting[lane] == states.count((State.QUEUED, lane))
        assert depth.parked == len(self.parked())

    def teardown(self) -> None:
        """Whatever happened: one worker brings every job to one end, and the lanes are empty."""
        try:
            self.run(self._end_all())
        finally:
            self.run(self.queue.__aexit__(None, None, None))
            self.loop.close()

    async def _end_all(self) -> None:
        consumer = self.queue.consumer("last")
        for job_id, model in self.model.items():
            if model.attempt and not model.state.final:
                job = await self.queue.get(job_id)
                await lease_over(self.queue, Claim(job, submission()))
        while (claim := await consumer.claim()) is not None:
            await consumer.succeed(claim, JobResult(prefix="results/x"))
        for job_id, model in self.model.items():
            job = await self.queue.get(job_id)
            ends = [
                State(event.data["state"])
                async for event in await self.queue.events(job_id)
                if event.kind == "state" and State(event.data["state"]).final
            ]
            assert job.state.final
            assert ends == [job.state]
            assert not model.state.final or job.state is model.state
        assert await unfinished(self.queue) == {}


def test_the_queue_does_what_its_model_does(redis_server: RedisServer) -> None:
    run_state_machine_as_test(
        lambda: QueueMachine(redis_server.url),
        settings=settings(
            max_examples=20,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
