"""The dashboards: overview, models, jobs, GPU.

Every gateway of a deployment tells the same of Redis, the queue and Triton, so those are read with
`max` or `min`; what each process counts for itself is summed.
"""

from __future__ import annotations

from deploy.grafana.panels import Dashboard, Panel, Query, Row, Variable

_RATE = "[$__rate_interval]"
_MODEL = 'model=~"$model"'
_TASK = 'task=~"$task"'


def _quantile(share: float, metric: str, labels: str = "", by: str = "") -> str:
    kept = ", ".join(filter(None, ("le", by)))
    return (
        f"histogram_quantile({share}, sum by ({kept}) (rate({metric}_bucket{{{labels}}}{_RATE})))"
    )


def _quantiles(metric: str, labels: str = "") -> list[Query]:
    return [
        Query(_quantile(share, metric, labels), f"p{share * 100:g}") for share in (0.5, 0.95, 0.99)
    ]


def _per(numerator: str, denominator: str, labels: str = _MODEL, by: str = "model") -> str:
    """Return the ratio of two counters' rates, absent where nothing was counted."""
    below = f"sum by ({by}) (rate({denominator}{{{labels}}}{_RATE}))"
    return f"sum by ({by}) (rate({numerator}{{{labels}}}{_RATE})) / ({below} > 0)"


_STATE = Row(
    "State",
    [
        Panel(
            title,
            [Query(f"min({metric})")],
            description,
            kind="stat",
            width=4,
            most=1,
            limits=(1, 0.5),
        )
        for title, metric, description in (
            ("Ready", "vitrine_ready", "0: a gateway's /readyz says 503."),
            ("Triton", "vitrine_triton_up", "0: a gateway gets no answer from Triton."),
            ("Redis", "vitrine_redis_up", "0: a gateway gets no answer from Redis; jobs get 503."),
        )
    ]
    + [
        Panel(
            "Models not ready",
            [Query("count(min by (model) (vitrine_model_ready) == 0) or vector(0)")],
            "Required or default models that are not loaded.",
            kind="stat",
            width=4,
            limits=(1, 2),
        ),
        Panel(
            "Workers",
            [Query("count(vitrine_worker_jobs_running) or vector(0)")],
            "Worker processes that are scraped.",
            kind="stat",
            width=4,
            limits=(1, 0.5),
        ),
        Panel(
            "Storage free",
            [Query("min(vitrine_storage_free_bytes / vitrine_storage_size_bytes)")],
            "Of the file system of results and uploads; nothing for buckets.",
            kind="stat",
            unit="percentunit",
            width=4,
            most=1,
            limits=(0.2, 0.1),
        ),
    ],
    height=4,
)

OVERVIEW = Dashboard(
    "vitrine-overview",
    "Vitrine / Overview",
    "Is it up, how much is asked of it, how fast and how well does it answer?",
    [
        _STATE,
        Row(
            "Requests",
            [
                Panel(
                    "Requests by route",
                    [Query(f"sum by (route) (rate(vitrine_requests_total{_RATE}))", "{{route}}")],
                    unit="reqps",
                    stacked=True,
                ),
                Panel(
                    "Answers by status",
                    [Query(f"sum by (status) (rate(vitrine_requests_total{_RATE}))", "{{status}}")],
                    "429: refused by a limit. 503: something is down or overloaded.",
                    unit="reqps",
                    stacked=True,
                ),
                Panel(
                    "Share of server errors",
                    [
                        Query(
                            f'(sum(rate(vitrine_requests_total{{status=~"5.."}}{_RATE})) or vector(0))'
                            f" / (sum(rate(vitrine_requests_total{_RATE})) > 0)",
                            "5xx",
                        )
                    ],
                    "The error budget is 0.1 %.",
                    unit="percentunit",
                    limits=(0.001, 0.01),
                ),
                Panel(
                    "Time of synchronous answers",
                    _quantiles(
                        "vitrine_request_duration_seconds", 'method="POST", status="200", model!=""'
                    ),
                    "From the request's head to the end of its answer.",
                    unit="s",
                ),
                Panel(
                    "p95 by route",
                    [
                        Query(
                            _quantile(0.95, "vitrine_request_duration_seconds", by="route"),
                            "{{route}}",
                        )
                    ],
                    "Streams of events (…/events) last as long as their jobs.",
                    unit="s",
                ),
                Panel(
                    "In flight",
                    [Query("sum(vitrine_requests_in_flight)", "requests")],
                    "Requests being answered, streams included.",
                ),
            ],
        ),
        Row(
            "Where the time goes",
            [
                Panel(
                    "p95 by stage",
                    [
                        Query(
                            _quantile(0.95, "vitrine_stage_duration_seconds", by="stage"),
                            "{{stage}}",
                        )
                    ],
                    "Stages of synchronous answers: decode, infer and others.",
                    unit="s",
                ),
                Panel(
                    "Failures of inference",
                    [
                        Query(
                            f"sum by (code) (rate(vitrine_triton_errors_total{_RATE}))", "{{code}}"
                        )
                    ],
                    "Synchronous requests that failed in or before Triton, by error code.",
                    unit="reqps",
                    stacked=True,
                ),
                Panel(
                    "Jobs",
                    [
                        Query("sum(max by (lane) (vitrine_jobs_queued))", "waiting"),
                        Query("max(vitrine_jobs_running)", "running"),
                    ],
                    stacked=True,
                ),
            ],
        ),
        Row(
            "Processes",
            [
                Panel(
                    "CPU",
                    [
                        Query(
                            f"sum by (job, instance) (rate(process_cpu_seconds_total{_RATE}))",
                            "{{job}} {{instance}}",
                        )
                    ],
                    "Cores in use by each gateway (all its processes) and worker.",
                ),
                Panel(
                    "Memory",
                    [
                        Query(
                            "sum by (job, instance) (process_resident_memory_bytes)",
                            "{{job}} {{instance}}",
                        )
                    ],
                    "Resident; of a gateway, all its processes.",
                    unit="bytes",
                ),
                Panel(
                    "Open files",
                    [Query("sum by (job, instance) (process_open_fds)", "{{job}} {{instance}}")],
                ),
            ],
        ),
    ],
)

MODELS = Dashboard(
    "vitrine-models",
    "Vitrine / Models",
    "What Triton does for each model: how much, in how large batches, and where it waits.",
    [
        Row(
            "Load",
            [
                Panel(
                    "Items per second",
                    [
                        Query(
                            f"sum by (model) (rate(nv_inference_count{{{_MODEL}}}{_RATE}))",
                            "{{model}}",
                        )
                    ],
                    "Pictures, faces or prompts; a request may hold several.",
                    unit="ops",
                    stacked=True,
                ),
                Panel(
                    "Batch size",
                    [Query(_per("nv_inference_count", "nv_inference_exec_count"), "{{model}}")],
                    "Items per execution: what dynamic batching makes of the load.",
                ),
                Panel(
                    "Failed requests",
                    [
                        Query(
                            "sum by (model, reason) "
                            f"(rate(nv_inference_request_failure{{{_MODEL}}}{_RATE}))",
                            "{{model}} {{reason}}",
                        )
                    ],
                    unit="reqps",
                    stacked=True,
                ),
            ],
        ),
        Row(
            "Time in Triton",
            [
                Panel(
                    "Queue time per request",
                    [
                        Query(
                            _per("nv_inference_queue_duration_us", "nv_inference_request_success")
                            + " / 1e6",
                            "{{model}}",
                        )
                    ],
                    "Mean wait for a batch and for a free instance. It grows first when a model is short of hardware.",
                    unit="s",
                ),
                Panel(
                    "Compute time per execution",
                    [
                        Query(
                            "("
                            + _per(
                                "nv_inference_compute_infer_duration_us", "nv_inference_exec_count"
                            )
                            + ") / 1e6",
                            "{{model}}",
                        )
                    ],
                    "Summed over the requests of a batch, as Triton counts it.",
                    unit="s",
                ),
                Panel(
                    "Request time in Triton",
                    [
                        Query(
                            "("
                            + _per(
                                "nv_inference_request_duration_us", "nv_inference_request_success"
                            )
                            + ") / 1e6",
                            "{{model}}",
                        )
                    ],
                    "Mean from arrival to answer.",
                    unit="s",
                ),
                Panel(
                    "Requests pending",
                    [
                        Query(
                            f"sum by (model) (nv_inference_pending_request_count{{{_MODEL}}})",
                            "{{model}}",
                        )
                    ],
                    "Waiting to be executed.",
                    stacked=True,
                ),
                Panel(
                    "Busy share of an instance",
                    [
                        Query(
                            "sum by (model) (rate(nv_inference_compute_infer_duration_us"
                            f"{{{_MODEL}}}{_RATE})) / 1e6",
                            "{{model}}",
                        )
                    ],
                    "Seconds of computing per second, counted once a request of a batch.",
                    unit="percentunit",
                ),
            ],
        ),
        Row(
            "Seen from the gateway",
            [
                Panel(
                    "p95 of synchronous answers",
                    [
                        Query(
                            _quantile(
                                0.95,
                                "vitrine_request_duration_seconds",
                                f'{_MODEL}, model!="", status="200"',
                                "model",
                            ),
                            "{{model}}",
                        )
                    ],
                    unit="s",
                ),
                Panel(
                    "p95 by stage",
                    [
                        Query(
                            _quantile(
                                0.95, "vitrine_stage_duration_seconds", _MODEL, "model, stage"
                            ),
                            "{{model}} {{stage}}",
                        )
                    ],
                    unit="s",
                ),
                Panel(
                    "Answers that are no success",
                    [
                        Query(
                            "sum by (model, status) (rate(vitrine_requests_total"
                            f'{{{_MODEL}, model!="", status!~"2.."}}{_RATE}))',
                            "{{model}} {{status}}",
                        )
                    ],
                    unit="reqps",
                    stacked=True,
                ),
                Panel(
                    "In flight",
                    [
                        Query(
                            f"sum by (model) (vitrine_model_requests_in_flight{{{_MODEL}}})",
                            "{{model}}",
                        )
                    ],
                    "Synchronous requests that are being answered.",
                    stacked=True,
                ),
                Panel(
                    "Refused early",
                    [
                        Query(
                            "sum by (model) "
                            f"(rate(vitrine_requests_shed_total{{{_MODEL}}}{_RATE}))",
                            "{{model}}",
                        )
                    ],
                    "Requests that could not have been answered in time.",
                    unit="reqps",
                    stacked=True,
                ),
                Panel(
                    "Circuit breaker",
                    [Query(f"max by (model) (vitrine_breaker_state{{{_MODEL}}})", "{{model}}")],
                    "0 closed, 1 half-open, 2 open: requests are refused.",
                    most=2,
                ),
                Panel(
                    "Ready",
                    [Query(f"min by (model) (vitrine_model_ready{{{_MODEL}}})", "{{model}}")],
                    "Required or default models: 1 loaded, 0 not.",
                    most=1,
                ),
            ],
        ),
    ],
    [Variable("model", "nv_inference_count", "model")],
)

JOBS = Dashboard(
    "vitrine-jobs",
    "Vitrine / Jobs",
    "The queue: how much waits, for how long, and how jobs end.",
    [
        Row(
            "Queue",
            [
                Panel(
                    "Waiting by lane",
                    [Query("max by (lane) (vitrine_jobs_queued)", "{{lane}}")],
                    stacked=True,
                ),
                Panel(
                    "Running",
                    [
                        Query("max(vitrine_jobs_running)", "held by workers"),
                        Query("sum(vitrine_worker_jobs_running)", "as the workers say"),
                    ],
                    "The two differ for a while after a worker is lost: until its leases run out.",
                ),
                Panel(
                    "Workers",
                    [Query("count(vitrine_worker_jobs_running)", "workers")],
                ),
                Panel(
                    "Time to the first start",
                    _quantiles("vitrine_job_wait_seconds", _TASK),
                    "From submission to the first start.",
                    unit="s",
                ),
                Panel(
                    "p95 of the wait by task",
                    [Query(_quantile(0.95, "vitrine_job_wait_seconds", _TASK, "task"), "{{task}}")],
                    unit="s",
                ),
                Panel(
                    "Age of the oldest waiting job",
                    [Query("max by (lane) (vitrine_queue_oldest_seconds)", "{{lane}}")],
                    "Grows by a second a second while nothing of the lane starts.",
                    unit="s",
                ),
                Panel(
                    "Submitted",
                    [
                        Query(
                            f'sum by (route) (rate(vitrine_requests_total{{status="202"}}{_RATE}))',
                            "{{route}}",
                        )
                    ],
                    "Requests that became a job.",
                    unit="reqps",
                    stacked=True,
                ),
            ],
        ),
        Row(
            "Work",
            [
                Panel(
                    "Finished by state",
                    [
                        Query(
                            f"sum by (state) (rate(vitrine_jobs_finished_total{{{_TASK}}}{_RATE}))",
                            "{{state}}",
                        )
                    ],
                    unit="ops",
                    stacked=True,
                ),
                Panel(
                    "Share that failed",
                    [
                        Query(
                            "(sum by (task) (rate(vitrine_jobs_finished_total"
                            f'{{{_TASK}, state="failed"}}{_RATE}))) / (sum by (task) '
                            f"(rate(vitrine_jobs_finished_total{{{_TASK}}}{_RATE})) > 0)",
                            "{{task}}",
                        )
                    ],
                    unit="percentunit",
                    limits=(0.05, 0.2),
                ),
                Panel(
                    "Started again",
                    [
                        Query(
                            "sum by (task) "
                            f"(rate(vitrine_job_redeliveries_total{{{_TASK}}}{_RATE}))",
                            "{{task}}",
                        )
                    ],
                    "After a lost worker, or while a part of the system was down.",
                    unit="ops",
                ),
                Panel(
                    "Run time",
                    _quantiles("vitrine_job_run_seconds", f'{_TASK}, state="succeeded"'),
                    "Of attempts that succeeded.",
                    unit="s",
                ),
                Panel(
                    "Run time by task",
                    [
                        Query(
                            _quantile(
                                0.95,
                                "vitrine_job_run_seconds",
                                f'{_TASK}, state="succeeded"',
                                "task",
                            ),
                            "{{task}}",
                        )
                    ],
                    unit="s",
                ),
                Panel(
                    "Room for results",
                    [
                        Query("min(vitrine_storage_free_bytes)", "free"),
                        Query("min(vitrine_storage_size_bytes)", "size"),
                    ],
                    "Directories only.",
                    unit="bytes",
                ),
            ],
        ),
    ],
    [Variable("task", "vitrine_jobs_finished_total", "task")],
)

_GPU = 'gpu_uuid=~"$gpu"'
GPU = Dashboard(
    "vitrine-gpu",
    "Vitrine / GPU",
    "The hardware under Triton, as Triton tells it; the GPU rows stay empty without one.",
    [
        Row(
            "GPU",
            [
                Panel(
                    "Utilization",
                    [Query(f"nv_gpu_utilization{{{_GPU}}}", "{{gpu_uuid}}")],
                    "Share of time in which a kernel ran; it does not tell how well the kernel used the GPU.",
                    unit="percentunit",
                    most=1,
                ),
                Panel(
                    "GPU memory",
                    [
                        Query(f"nv_gpu_memory_used_bytes{{{_GPU}}}", "used {{gpu_uuid}}"),
                        Query(f"nv_gpu_memory_total_bytes{{{_GPU}}}", "total {{gpu_uuid}}"),
                    ],
                    unit="bytes",
                ),
                Panel(
                    "Power",
                    [
                        Query(f"nv_gpu_power_usage{{{_GPU}}}", "{{gpu_uuid}}"),
                        Query(f"nv_gpu_power_limit{{{_GPU}}}", "limit {{gpu_uuid}}"),
                    ],
                    unit="watt",
                ),
                Panel(
                    "Energy per item",
                    [
                        Query(
                            f"sum(rate(nv_energy_consumption{{{_GPU}}}{_RATE}))"
                            f" / (sum(rate(nv_inference_count{_RATE})) > 0)",
                            "all models",
                        )
                    ],
                    "Joules of all GPUs over items of all models.",
                    unit="joule",
                ),
                Panel(
                    "Items per second and GPU",
                    [
                        Query(
                            f"sum(rate(nv_inference_count{_RATE})) / count(nv_gpu_utilization{{{_GPU}}})",
                            "items/s",
                        )
                    ],
                    unit="ops",
                ),
            ],
        ),
        Row(
            "Host of Triton",
            [
                Panel(
                    "CPU",
                    [Query("nv_cpu_utilization", "{{instance}}")],
                    "Of the whole machine.",
                    unit="percentunit",
                    most=1,
                ),
                Panel(
                    "Memory",
                    [
                        Query("nv_cpu_memory_used_bytes", "used {{instance}}"),
                        Query("nv_cpu_memory_total_bytes", "total {{instance}}"),
                    ],
                    unit="bytes",
                ),
                Panel(
                    "Pinned memory",
                    [
                        Query("nv_pinned_memory_pool_used_bytes", "used {{instance}}"),
                        Query("nv_pinned_memory_pool_total_bytes", "total {{instance}}"),
                    ],
                    "Triton's pool for copies between host and GPU.",
                    unit="bytes",
                ),
            ],
        ),
    ],
    [Variable("gpu", "nv_gpu_utilization", "gpu_uuid")],
)

DASHBOARDS = (OVERVIEW, MODELS, JOBS, GPU)
