#!/usr/bin/env bash
# Makes the books gsm.book and math-l5.book of the public result files of ZeroEval (Apache-2.0).
#
#   git clone --depth 1 https://github.com/WildEval/ZeroEval
#   benchmarks/outcomes/zeroeval.sh ZeroEval books
#
# Takes half a minute. It needs pip install 'route-and-reason[eval]'.
set -euo pipefail
results=${1:?the directory of ZeroEval}/result_dirs
out=${2:?the directory of the books}
prices=$(dirname "$0")/prices.yaml

small="qwen2.5-3b=Qwen2.5-3B-Instruct qwen2.5-7b=Qwen2.5-7B-Instruct"
large="qwen2.5-32b=Qwen2.5-32B-Instruct qwen2.5-72b=Qwen2.5-72B-Instruct"
both="qwen2-7b=Qwen2-7B-Instruct qwen2-72b=Qwen2-72B-Instruct
  llama-3.1-8b=Meta-Llama-3.1-8B-Instruct llama-3.1-70b=Meta-Llama-3.1-70B-Instruct
  gemma-2-2b=gemma-2-2b-it gemma-2-9b=gemma-2-9b-it
  gpt-4o-mini=gpt-4o-mini-2024-07-18 gpt-4o=gpt-4o-2024-08-06
  deepseek-v2.5=deepseek-v2.5-0908 claude-3.5-sonnet=claude-3-5-sonnet-20240620
  o1-mini=o1-mini-2024-09-12"

book() {  # NAME GRADER MODEL=FILE...
  local name=$1 grader=$2 files=() pair
  shift 2
  for pair in "$@"; do files+=("${pair%%=*}=$results/$name/${pair#*=}.json"); done
  r2-serve outcomes import zeroeval "${files[@]}" \
    --grader "$grader" --prices "$prices" --out "$out/$name.book"
}

# shellcheck disable=SC2086
book gsm number $both
# shellcheck disable=SC2086
book math-l5 math $small $large $both
