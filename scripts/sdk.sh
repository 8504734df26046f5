#!/usr/bin/env bash
# Fetches what compiling (and running) the TensorRT backend needs into one folder, by package clients alone; no CUDA install.
#
#   scripts/sdk.sh [compile|all] [DIR=.sdk]
#
#   DIR/trt/include   TensorRT C++ headers. They are newer than the library; what the backend calls exists in 10.6.
#   DIR/cuda          CUDA 13.0: nvcc, headers, static runtime
#   DIR/flashinfer    FlashInfer's header-only kernels, with the CUTLASS and CCCL headers they want
#   DIR/trt/lib       only with `all`: TensorRT 10.6.0 libraries (libnvinfer, libnvonnxparser, builder resource)
#
# `compile` downloads about 170 MB, `all` another 1.1 GB. A part that is there already is left alone, and each part appears
# only when it is complete. Needs bash, python3 with pip, cargo; `all` needs mvn and unzip too.
set -euo pipefail

headers_crate=trtx-sys
headers_version=0.5.0
tensorrt_artifact=org.bytedeco:tensorrt:10.6-1.5.11:jar:linux-x86_64-redist
flashinfer=flashinfer-python==0.7.2.post1
cuda=(nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-runtime==13.0.96
  nvidia-cuda-cccl==13.0.85 nvidia-curand==10.4.0.35)

die() {
  echo "sdk.sh: $*" >&2
  exit 1
}
need() {
  local tool
  for tool in "$@"; do command -v "$tool" >/dev/null || die "needs $tool on the PATH"; done
}

what=${1:-compile}
dir=${2:-.sdk}
case $what in
  compile | all) ;;
  *) die "unknown set '$what': compile or all" ;;
esac
[ "$(uname -sm)" = 'Linux x86_64' ] || die 'the packages are for Linux on x86-64'

mkdir -p "$dir/trt"
dir=$(cd "$dir" && pwd)
# On the same file system as DIR, so that each part is moved into place at once.
tmp=$(mktemp -d "$dir/.tmp.XXXXXX")
trap 'rm -rf "$tmp"' EXIT

fetch_headers() {
  [ -e "$dir/trt/include/NvInfer.h" ] && return
  need cargo
  mkdir "$tmp/headers"
  (
    cd "$tmp/headers"
    cargo init -q --vcs none --name headers .
    cargo add -q "$headers_crate@=$headers_version"
    cargo vendor -q vendor >/dev/null
  )
  local found
  found=$(find "$tmp/headers/vendor/$headers_crate" -path '*Enterprise*' -name NvInfer.h | sort -V | tail -1)
  [ -n "$found" ] || die "no NvInfer.h in $headers_crate $headers_version"
  mkdir "$tmp/include"
  cp "$(dirname "$found")"/*.h "$tmp/include/"
  mv "$tmp/include" "$dir/trt/include"
}

fetch_cuda() {
  [ -x "$dir/cuda/bin/nvcc" ] && return
  need python3
  python3 -m pip install -q --no-deps --root-user-action=ignore --target "$tmp/cuda" "${cuda[@]}"
  ln -sfn lib "$tmp/cuda/nvidia/cu13/lib64"
  mv "$tmp/cuda/nvidia/cu13" "$dir/cuda"
}

fetch_flashinfer() {
  [ -e "$dir/flashinfer/include/flashinfer" ] && return
  need python3
  python3 -m pip download -q --no-deps -d "$tmp" "$flashinfer"
  python3 - "$tmp" <<'PY'
import glob
import pathlib
import sys
import zipfile

tmp = pathlib.Path(sys.argv[1])
[wheel] = glob.glob(str(tmp / 'flashinfer_python-*.whl'))
kept = {'flashinfer/data/include/': 'include/', 'flashinfer/data/cutlass/include/': 'cutlass/include/',
        'flashinfer/data/cccl/': 'cccl/'}
with zipfile.ZipFile(wheel) as archive:
    for name in archive.namelist():
        if name.endswith('/'):
            continue
        target = next((to + name[len(start):] for start, to in kept.items() if name.startswith(start)), None)
        if target is None and '.dist-info/licenses/' in name:
            target = 'licenses/' + name.rpartition('/')[2]
        if target is not None:
            path = tmp / 'flashinfer' / target
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(archive.read(name))
PY
  mv "$tmp/flashinfer" "$dir/flashinfer"
}

fetch_libraries() {
  [ -e "$dir/trt/lib/libnvinfer.so.10" ] && return
  need mvn unzip
  mvn -q -B dependency:copy -Dartifact="$tensorrt_artifact" -DoutputDirectory="$tmp/jar" -Dmdep.useBaseVersion=true
  mkdir "$tmp/lib"
  unzip -q -j "$tmp"/jar/*.jar '*/libnvinfer.so*' '*/libnvonnxparser.so*' '*/libnvinfer_builder_resource.so*' -d "$tmp/lib"
  mv "$tmp/lib" "$dir/trt/lib"
}

fetch_headers
fetch_cuda
fetch_flashinfer
if [ "$what" = all ]; then fetch_libraries; fi
du -sh "$dir"/trt/* "$dir"/cuda "$dir"/flashinfer
