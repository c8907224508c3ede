#!/usr/bin/env bash
# Wheels for a machine that sees no registry: downloads them here and says their size.
#
#   tpu_scripts/wheels.sh [--cuda] DIR [PYTHON]     PYTHON: of that machine, 3.12 by default
#
# With --cuda JAX's CUDA plugin and NVIDIA's libraries come along (gigabytes); without, what that machine
# has of JAX is used as it is, and DIR holds what svdp_jax needs beside it. There:
#
#   python -m pip install --no-index --no-deps DIR/*.whl
set -euo pipefail

cuda=
if [ "${1:-}" = --cuda ]; then
  cuda=1
  shift
fi
if [ $# -lt 1 ]; then
  echo "wheels.sh: name a folder for the wheels" >&2
  exit 2
fi
folder=$1 python=${2:-3.12}
root=$(cd "$(dirname "$0")/.." && pwd)
tags=()
for version in $(seq 39 -1 17); do
  tags+=(--platform "manylinux_2_${version}_x86_64")
done
tags+=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)
wanted=$(mktemp)
trap 'rm -f "$wanted"' EXIT
python -c "
import sys, tomllib
project = tomllib.load(open(sys.argv[1], 'rb'))['project']
print(*project['dependencies'], *(['jax[cuda13]'] if sys.argv[2] else []), sep='\n')
" "$root/pyproject.toml" "$cuda" > "$wanted"
mkdir -p "$folder"
python -m pip download --quiet --only-binary=:all: --implementation cp --python-version "$python" "${tags[@]}" \
  --dest "$folder" --requirement "$wanted"
if [ -z "$cuda" ]; then # JAX and what it rests on are there, of one kind with the device's driver
  rm -f "$folder"/jax-*.whl "$folder"/jaxlib-*.whl "$folder"/numpy-*.whl "$folder"/scipy-*.whl "$folder"/ml_dtypes-*.whl
fi
du -ch "$folder"/*.whl | tail -1
