# Serves on a CPU. The image carries a small default model.
#
#   docker build -f docker/cpu.Dockerfile --build-arg TORCH_INDEX=URL -t lightllm-mp:cpu .
#   docker run --rm --read-only --tmpfs /tmp --stop-timeout 60 -p 127.0.0.1:8000:8000 lightllm-mp:cpu
#
# TORCH_INDEX is the package index of PyTorch's CPU builds: PyTorch's page "Start Locally" shows it behind --index-url
# for the compute platform CPU. TORCH_INDEX=default takes what pip finds by itself. On x86-64 this usually is the CUDA
# build: it works without a GPU, and it makes the image several gigabytes larger.
ARG BASE=debian:bookworm-slim

# ---- build: compilers and pip stay here ------------------------------------------------------------------------------
FROM ${BASE} AS build
ARG TORCH_INDEX
RUN if [ -z "$TORCH_INDEX" ]; then \
        echo "give --build-arg TORCH_INDEX=URL of PyTorch's CPU builds, or =default (see docker/cpu.Dockerfile)" >&2; \
        exit 1; \
    fi
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
# pip works from an environment of its own, so the one that is shipped has none.
RUN python3 -m venv tools \
    && python3 -m venv --without-pip /opt/venv

# Dependencies first: a change of the source does not install them again.
COPY docker/requirements.py pyproject.toml ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 requirements.py >requirements.txt \
    && if [ "$TORCH_INDEX" != default ]; then \
        tools/bin/pip --python /opt/venv/bin/python install --index-url "$TORCH_INDEX" \
            "$(grep '^torch' requirements.txt)"; \
    fi \
    && tools/bin/pip --python /opt/venv/bin/python install -r requirements.txt \
    # PyTorch's headers, its code generator and its own tests, 200 MB
    && torch=$(echo /opt/venv/lib/python3*/site-packages/torch) \
    && rm -rf "$torch/include" "$torch/test" "$torch"/bin/*[Tt]est* "$torch"/bin/protoc*

COPY . source
RUN --mount=type=cache,target=/root/.cache/pip \
    tools/bin/pip wheel --no-deps --wheel-dir wheels ./source ./source/compat/lightllm \
    && tools/bin/pip --python /opt/venv/bin/python install --no-deps wheels/*.whl \
    && /opt/venv/bin/python -c 'import lightllm_mp.shm._ring, lightllm_mp.kernels.cpu._native' \
    && tools/bin/pip --python /opt/venv/bin/python install --no-deps \
        "$(/opt/venv/bin/python -c 'from lightllm_mp.model_files.default_model import REQUIREMENT; print(REQUIREMENT)')"

# ---- the image -------------------------------------------------------------------------------------------------------
FROM ${BASE}
# Nobody needs to become another user: no file keeps its setuid or setgid bit.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* \
    && find / -xdev -type f -perm /6000 -exec chmod a-s {} + \
    && groupadd --gid 10001 lightllm \
    && useradd --uid 10001 --gid lightllm --home-dir /tmp --no-create-home --shell /usr/sbin/nologin lightllm \
    && mkdir /models
COPY docker/resolve_ptx_version /lightllm/tools/resolve_ptx_version
COPY --from=build /opt/venv /opt/venv

# /tmp is the only folder that is written to; it may be a small tmpfs without the right to execute.
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    LIGHTLLM_MP_HOST=0.0.0.0
USER 10001:10001
EXPOSE 8000
# The server is PID 1: it reaps orphans, and drains at SIGTERM (--drain-timeout, 30 s). Docker kills after 10 s unless
# --stop-timeout (compose: stop_grace_period) says more.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30m --retries=3 CMD ["lightllm-mp", "health"]
# No entry point: LightLLM's launcher brings a whole command.
CMD ["lightllm-mp", "serve"]

LABEL org.opencontainers.image.title="lightllm-mp" \
      org.opencontainers.image.description="An LLM and vision-language serving engine, on a CPU" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="debian:bookworm-slim"
