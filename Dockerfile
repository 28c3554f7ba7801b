# The router, Ray and the engines for a Kubernetes pod (`r2-serve kuberay`). CUDA 13 comes with torch's own
# wheels, and the driver from the node: 580 or later.
#   docker build --target serve -t registry.example/r2:0.1.0 . && docker push registry.example/r2:0.1.0
#   docker build --target train -t registry.example/r2-train:0.1.0 .     with what `r2-train` needs
FROM python:3.11-slim-bookworm AS serve

# KubeRay's probes need wget, kernels that vLLM compiles at its start need gcc, and the command that drains a
# pod needs procps.
RUN apt-get update \
 && apt-get install -y --no-install-recommends wget gcc libc6-dev procps \
 && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir uv==0.13.9
# The versions of pyproject.toml, in a layer that a change of our own code leaves alone.
WORKDIR /opt/r2
COPY constraints-gpu.txt ./
RUN uv pip install --system --no-cache -c constraints-gpu.txt \
 'ray[default,serve]==2.60.0' 'torch==2.13.0' 'transformers==5.17.0' 'vllm==0.29.0'

COPY pyproject.toml README.md ./
COPY r2_serve r2_serve
COPY r2_train r2_train
RUN uv pip install --system --no-cache -c constraints-gpu.txt .

# The container toolkit reads the first; the pod says which GPUs. GKE mounts the driver's libraries at
# /usr/local/nvidia, which no file of the image's loader names. vLLM's default sampler compiles itself with
# nvcc and g++, which the image lacks.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    LD_LIBRARY_PATH=/usr/local/nvidia/lib:/usr/local/nvidia/lib64 \
    VLLM_USE_FLASHINFER_SAMPLER=0 \
    VLLM_NO_USAGE_STATS=1
# Weights and compiled kernels, for a claim at /models. The directories belong to the user without a claim too.
ENV HF_HOME=/models/huggingface VLLM_CACHE_ROOT=/models/vllm TRITON_CACHE_DIR=/models/triton
RUN useradd --uid 1000 --create-home ray \
 && mkdir -p $HF_HOME $VLLM_CACHE_ROOT $TRITON_CACHE_DIR /home/ray/.cache \
 && chown -R ray:ray /models /home/ray/.cache
USER ray
WORKDIR /home/ray

FROM serve AS train
USER root
RUN cd /opt/r2 && uv pip install --system --no-cache -c constraints-gpu.txt '.[train]'
USER ray

# What `docker build` without --target makes.
FROM serve
