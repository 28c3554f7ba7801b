# The router, Ray and the engines for a Kubernetes pod (`r2-serve kuberay`). CUDA comes with torch's own
# wheels, and the driver from the node.
#   docker build -t registry.example/r2:0.1.0 . && docker push registry.example/r2:0.1.0
FROM python:3.11-slim-bookworm

# KubeRay's probes need wget, kernels that vLLM compiles at its start need gcc, and the command that drains a
# pod needs procps.
RUN apt-get update \
 && apt-get install -y --no-install-recommends wget gcc libc6-dev procps \
 && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir uv==0.13.9
# The versions of pyproject.toml, in a layer that a change of our own code leaves alone.
RUN uv pip install --system --no-cache \
 'ray[default,serve]==2.60.0' 'torch==2.13.0' 'transformers==5.17.0' 'vllm==0.29.0'

WORKDIR /opt/r2
COPY pyproject.toml README.md ./
COPY r2_serve r2_serve
COPY r2_train r2_train
RUN uv pip install --system --no-cache .

# The container toolkit reads this; the pod says which GPUs.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN useradd --uid 1000 --create-home ray
USER ray
WORKDIR /home/ray
