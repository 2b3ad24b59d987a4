# syntax=docker/dockerfile:1
# The HTTP service, and the web page, in one image; no weights inside. How to use it: docs/deploy.md.
#   docker build -t latentsync .                                  on the CPU
#   docker build -t latentsync:cuda --build-arg COMPUTE=cuda .    on NVIDIA GPUs
#   docker build --target demo .                                  what `make demo` does, in the image: it fails where the main job does not work
ARG PYTHON=3.11

FROM python:${PYTHON}-slim-bookworm AS service
# cpu takes PyTorch's CPU build; cuda the one of PyPI, which brings the CUDA libraries along. The driver comes from the host.
ARG COMPUTE=cpu
ARG TORCH=2.13.0
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 LATENTSYNC_HOME=/weights
WORKDIR /opt/latentsync
RUN case "$COMPUTE" in \
      cpu) pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu "torch==${TORCH}" ;; \
      cuda) pip install --no-cache-dir "torch==${TORCH}" ;; \
      *) echo "COMPUTE is cpu or cuda, not $COMPUTE" >&2; exit 1 ;; \
    esac
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY src src
RUN pip install --no-cache-dir --constraint constraints.txt ".[app,serve]" \
    && useradd --uid 10001 --create-home latentsync \
    && install --directory --owner=latentsync --group=latentsync --mode=0700 /weights /data
USER 10001:10001
WORKDIR /data
VOLUME ["/weights", "/data"]
EXPOSE 8000 7860
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=5)"]
ENTRYPOINT ["latentsync"]
CMD ["serve", "--host", "0.0.0.0", "--data", "/data"]

FROM service AS demo
RUN latentsync demo -o /tmp/demo --device cpu

FROM service
