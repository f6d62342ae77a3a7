# The images of Vitrine: `docker build --target gateway .`, likewise `worker` and `triton`; and their bills
# of materials, `docker build --target service-sbom --output sbom .`, likewise `triton-sbom`.
# docs/containers.md tells more.

# Pinned by tag; a digest (NAME@sha256:...) may be given instead.
ARG PYTHON_IMAGE=docker.io/library/python:3.11.14-slim-bookworm
ARG TRITON_IMAGE=nvcr.io/nvidia/tritonserver:25.10-pyt-python-py3


# The packages of gateway and worker, in an environment without pip. A private package index comes in as
# the secret `pip.conf`, with the certificates that it may name as `pip-ca`; neither stays in the image.
FROM ${PYTHON_IMAGE} AS service-packages
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN apt-get update && apt-get install --yes --no-install-recommends binutils && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY service/__init__.py service/__init__.py
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=pip-ca,target=/run/secrets/pip-ca \
    python -m venv --without-pip /opt/vitrine \
    && python -m pip --python /opt/vitrine/bin/python install --no-compile --constraint constraints.txt . \
    && python -m pip --python /opt/vitrine/bin/python uninstall --yes vitrine
COPY deploy/images/slim.py /usr/local/lib/slim.py
RUN python /usr/local/lib/slim.py /opt/vitrine

# The project itself, without the networks.
FROM service-packages AS service-wheel
COPY service service
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=pip-ca,target=/run/secrets/pip-ca \
    python -m pip wheel --no-deps --wheel-dir /wheel .

FROM ${PYTHON_IMAGE} AS service
RUN groupadd --gid 10001 vitrine \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin vitrine \
    && install --directory --owner=10001 --group=10001 --mode=0750 /var/lib/vitrine
# The root file system may be read-only: state is in the volume, uploads on their way are in /tmp.
ENV HOME=/tmp \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    OMP_NUM_THREADS=1 \
    VITRINE_DATA_DIR=/var/lib/vitrine \
    VITRINE_HOST=0.0.0.0
COPY --from=service-packages /opt/vitrine /opt/vitrine
RUN --mount=type=bind,from=service-wheel,source=/wheel,target=/wheel \
    python -m pip --python /opt/vitrine/bin/python install --no-index --no-deps --no-compile \
        --no-cache-dir --root-user-action=ignore /wheel/vitrine-*.whl
ENV PATH=/opt/vitrine/bin:$PATH
VOLUME /var/lib/vitrine
WORKDIR /var/lib/vitrine
USER 10001:10001
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.url="https://vitrine.dev" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

FROM service AS gateway
LABEL org.opencontainers.image.title="Vitrine gateway" \
      org.opencontainers.image.description="The REST API before Triton and the job queue"
ENV VITRINE_PORT=8000
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD python -m service.observability.probe "http://127.0.0.1:${VITRINE_PORT}/livez"
ENTRYPOINT ["python", "-m", "service.app"]

FROM service AS worker
LABEL org.opencontainers.image.title="Vitrine worker" \
      org.opencontainers.image.description="Takes jobs from the queue, has Triton do them, stores the results"
ENV VITRINE_WORKER__METRICS_PORT=9100
EXPOSE 9100
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD python -m service.observability.probe "http://127.0.0.1:${VITRINE_WORKER__METRICS_PORT}/metrics"
ENTRYPOINT ["python", "-m", "service.jobs.worker"]


# The networks, for the Python of Triton's image. TORCH_INDEX may name an index with other builds of torch, such
# as those without CUDA, which are 6 GB smaller. NETWORKS is empty where torch comes from elsewhere.
FROM ${TRITON_IMAGE} AS triton-packages
ARG NETWORKS=[models]
ARG TORCH_INDEX=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY service/__init__.py service/__init__.py
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=pip-ca,target=/run/secrets/pip-ca \
    python3 -m venv --without-pip /opt/vitrine \
    && python3 -m pip --python /opt/vitrine/bin/python install --constraint constraints.txt \
        ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} ".${NETWORKS}" \
    && python3 -m pip --python /opt/vitrine/bin/python uninstall --yes vitrine

FROM triton-packages AS triton-wheel
COPY service service
COPY models models
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=pip-ca,target=/run/secrets/pip-ca \
    python3 -m pip wheel --no-deps --wheel-dir /wheel .

FROM ${TRITON_IMAGE} AS triton
USER root
RUN groupadd --gid 10001 vitrine \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin vitrine \
    && install --directory --owner=10001 --group=10001 --mode=0750 /var/lib/vitrine
ENV HOME=/tmp \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    VITRINE_DATA_DIR=/var/lib/vitrine
COPY --from=triton-packages /opt/vitrine /opt/vitrine
RUN --mount=type=bind,from=triton-wheel,source=/wheel,target=/wheel \
    python3 -m pip --python /opt/vitrine/bin/python install --no-index --no-deps \
        --no-cache-dir --root-user-action=ignore /wheel/vitrine-*.whl
ENV PATH=/opt/vitrine/bin:/opt/tritonserver/bin:$PATH
VOLUME /var/lib/vitrine
WORKDIR /var/lib/vitrine
USER 10001:10001
# HTTP (health), gRPC, metrics.
EXPOSE 8000 8001 8002
HEALTHCHECK --interval=10s --timeout=5s --start-period=600s --retries=3 \
    CMD python -m service.observability.probe http://127.0.0.1:8000/v2/health/ready
ENTRYPOINT ["python", "-m", "models", "serve"]
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Vitrine Triton" \
      org.opencontainers.image.description="Triton Inference Server with the networks and their demo weights" \
      org.opencontainers.image.url="https://vitrine.dev" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"


# Bills of materials (CycloneDX): every Python package of the images, with version, licence and hashes.
FROM service-packages AS service-materials
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=pip-ca,target=/run/secrets/pip-ca \
    python -m venv --without-pip /opt/cyclonedx \
    && python -m pip --python /opt/cyclonedx/bin/python install --constraint constraints.txt cyclonedx-bom
RUN /opt/cyclonedx/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
        --output-file /service.cdx.json /opt/vitrine/bin/python

FROM scratch AS service-sbom
COPY --from=service-materials /service.cdx.json /

FROM triton-packages AS triton-materials
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=pip-ca,target=/run/secrets/pip-ca \
    python3 -m venv --without-pip /opt/cyclonedx \
    && python3 -m pip --python /opt/cyclonedx/bin/python install --constraint constraints.txt cyclonedx-bom
RUN /opt/cyclonedx/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
        --output-file /triton.cdx.json /opt/vitrine/bin/python

FROM scratch AS triton-sbom
COPY --from=triton-materials /triton.cdx.json /
