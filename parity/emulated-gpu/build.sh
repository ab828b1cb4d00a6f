#!/usr/bin/env bash
# parity/emulated-gpu/build.sh DIR [COMMAND...]
# Builds, in DIR, an emulated GPU: libraries with the names of CUDA's driver, cuBLAS, cuRAND and cuDNN that run kernels on the host,
# and an `nvcc` that compiles nothing. Then runs COMMAND (cargo with the features `cuda` and `cudnn`, or what it built) with them; without one it
# prints what to `eval`.
# Needs g++ 12 or newer and x86-64; no CUDA and no GPU.
#
# candle's kernels, cudarc's calls and ours run as they are: what is emulated lies below them. It is far from a GPU's speed and
# rounding, so no timing and no GPU figure comes from it.
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: $0 DIR [COMMAND...]" >&2; exit 2; }
command -v g++ > /dev/null || { echo "error: the emulated GPU is built by g++, 12 or newer, which is not here" >&2; exit 1; }
# Without symbolic links: a module names the file that it was made of.
here=$(cd "$(dirname "$0")" && pwd -P)
root=$(cd "$here/../.." && pwd -P)
mkdir -p "$1/bin" "$1/lib64" "$1/include"
out=$(cd "$1" && pwd -P)
shift
exec 9> "$out/lock"
flock 9
# The folder of a package's sources.
sources() {
  (cd "$root" && cargo metadata --locked --format-version 1 --features kd-run/cuda) | grep -oP "\"manifest_path\":\"\K[^\"]*/$1-[0-9.]+(?=/Cargo.toml\")" | sort -u | tail -1
}
candle=$(realpath "$(sources candle-kernels)/src") || { echo "error: cargo does not say where candle-kernels lies" >&2; exit 1; }
cudarc=$(realpath "$(sources cudarc)/src") || { echo "error: cargo does not say where cudarc lies" >&2; exit 1; }
flags=(-std=c++20 -O2 -fPIC -fvisibility=hidden -ftls-model=initial-exec -fno-strict-aliasing -w -pthread)
flags+=("-I$here" "-I$here/include" "-I$here/../kernels/include")

kernels=("$root"/crates/*/kernels/*.cu "$root"/crates/kd-loss/src/logits/fused/kernel.cu)
# Not candle's quantised products and its sorting, which kd does not call.
for name in affine binary cast conv fill indexing reduce ternary unary; do kernels+=("$candle/$name.cu"); done
environment() {
  for name in CUDA_HOME CUDA_ROOT CUDA_PATH CUDA_TOOLKIT_ROOT_DIR; do printf 'export %s=%q\n' "$name" "$out"; done
  printf 'export KD_EMULATED_GPU=1 NVCC=%q CUDARC_CUDA_VERSION=13000 CUDA_COMPUTE_CAP=90\n' "$out/bin/nvcc"
  printf 'export LIBRARY_PATH=%q LD_LIBRARY_PATH=%q PATH=%q:"$PATH"\n' "$out/lib64" "$out/lib64" "$out/bin"
}
finish() {
  [ $# -gt 0 ] || { environment; exit; }
  unset NVCC_CCBIN
  eval "$(environment)"
  exec "$@" 9>&-
}
# Built before, of the same files?
made_of=$(
  find "$here" "$here/../kernels/include" "$root"/crates/*/kernels -type f -print0 | sort -z | xargs -0 cat - "${kernels[@]}" "$candle"/*.cuh < /dev/null | sha256sum
  echo "$root $candle $cudarc"
  g++ --version | head -1
)
if [ "$(cat "$out/made-of" 2>/dev/null)" = "$made_of" ]; then finish "$@"; fi
rm -f "$out/made-of"
mkdir -p "$out/objects"
# What every kernel is compiled with; a kernel that has changed alone is compiled alone.
headers=$(cat "$0" "$here"/*.h "$here"/include/*.h "$here"/../kernels/include/*.h "$root"/crates/*/kernels/*.cuh "$candle"/*.cuh | sha256sum)
compile() {
  local file=$1 object=$2
  local hash
  hash=$(echo "$headers ${flags[*]} $file $(g++ --version | head -1)" | cat - "$file" | sha256sum)
  if [ -e "$object" ] && [ "$(cat "$object.made-of" 2>/dev/null)" = "$hash" ]; then return; fi
  rm -f "$object" "$object.made-of"
  local defines=(-include "$here/include/threads.h" -D__CUDA_ARCH__=800 -D__CUDACC_VER_MAJOR__=13 -D__CUDACC_VER_MINOR__=0)
  local names
  names=$(g++ "${flags[@]}" "${defines[@]}" -D__global__=A_KERNEL -E -P -x c++ "$file" | tr '\n' ' ' | grep -oP 'extern "C" A_KERNEL void *(__attribute__ *\(\(.*?\)\))? *\K\w+')
  {
    # Files share names of helpers, and some of kernels.
    printf 'namespace {\n#include "%s"\n}\n' "$file"
    for name in $names; do printf 'static bool added_%s = gpu::add("%s", "%s", %s);\n' "$name" "$file" "$name" "$name"; done
  } > "$object.cpp"
  g++ "${flags[@]}" "${defines[@]}" -c "$object.cpp" -o "$object"
  printf '%s' "$hash" > "$object.made-of"
}
i=0
for file in "${kernels[@]}"; do
  while [ "$(jobs -rp | wc -l)" -ge "$(nproc)" ]; do wait -n || true; done
  compile "$file" "$out/objects/kernel$i.o" &
  i=$((i + 1))
done
wait || true
for ((j = 0; j < i; j++)); do [ -e "$out/objects/kernel$j.o" ] || { echo "error: ${kernels[j]} was not compiled" >&2; exit 1; }; done
for name in threads driver libraries; do g++ "${flags[@]}" -Wall -Wextra -c "$here/$name.cpp" -o "$out/objects/$name.o"; done

# What else cudarc and candle could call says so and ends the process.
nm -g --defined-only "$out/objects/driver.o" "$out/objects/libraries.o" | grep -oP ' T \K(cu|nvrtc)\w+' | sort -u > "$out/objects/known"
{
  echo '#include <cstdio>'
  echo '#include <cstdlib>'
  echo '#define NOT_EMULATED(name) extern "C" __attribute__((visibility("default"))) void name() { std::fprintf(stderr, "emulated GPU: %s is not emulated\n", #name); std::abort(); }'
  {
    cat "$cudarc"/{driver,cublas,cublaslt,curand,nvrtc,cudnn}/sys/mod.rs | grep -oP 'fn \K(cu|nvrtc)\w+(?=\()'
    grep -oP 'pub fn \K\w+(?=\()' "$candle/ffi.rs"
  } | sort -u |
    comm -23 - "$out/objects/known" | sed 's/.*/NOT_EMULATED(&)/'
} > "$out/objects/others.cpp"
g++ "${flags[@]}" -c "$out/objects/others.cpp" -o "$out/objects/others.o"
g++ -shared -pthread -Wl,-soname,libkd_emulated_gpu.so -o "$out/lib64/libkd_emulated_gpu.so" "$out"/objects/*.o
for name in cuda cublas cublasLt curand nvrtc cudart cudnn; do ln -sf libkd_emulated_gpu.so "$out/lib64/lib$name.so"; done

cat > "$out/bin/nvcc" <<'NVCC'
#!/usr/bin/env bash
# In place of nvcc: a .ptx that names its .cu file, for the emulated driver, and libraries without a function.
out="" folder=. last=""
for argument in "$@"; do
  case $last in -o) out=$argument ;; --output-directory) folder=$argument ;; esac
  case $argument in
    --version) printf 'nvcc of an emulation\n\n\nCuda compilation tools, release 13.0, V13.0.88\n'; exit ;;
    *.cu) source=$argument ;;
  esac
  last=$argument
done
case $* in
  *-ptx*) printf '// for kd'"'"'s emulated GPU: %s\n' "$(realpath "$source")" > "${out:-$folder/$(basename "${source%.cu}").ptx}" ;;
  *--lib*) printf '!<arch>\n' > "$out" ;;
  *) : > "$out" ;;
esac
NVCC
chmod +x "$out/bin/nvcc"
touch "$out/include/cuda.h"
printf '%s' "$made_of" > "$out/made-of"
finish "$@"
