#!/usr/bin/env bash
# parity/kernels/check.sh [NAME...]
# Runs the CUDA kernels' device code on the host, each thread of a block a real thread, and compares it with f64
# formulas: once with AddressSanitizer and UndefinedBehaviorSanitizer, once with ThreadSanitizer.
# NAME is a check here without .cpp; all by default. Needs g++ 12 or newer, no CUDA and no GPU.
# It is an emulation: it finds wrong indices, barriers and reductions, and says nothing about a GPU's speed.
set -euo pipefail
cd "$(dirname "$0")"
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
names=("$@")
[ ${#names[@]} -gt 0 ] || for file in *.cpp; do names+=("${file%.cpp}"); done
for name in "${names[@]}"; do
  for sanitizers in address,undefined thread; do
    g++ -std=c++20 -O1 -g -pthread -Wall -Wextra -Wno-unknown-pragmas -Iinclude -include include/emulate.h \
      -fsanitize=$sanitizers -fno-sanitize-recover=all "$name.cpp" -o "$out/$name"
    echo "-- $name, $sanitizers"
    "$out/$name"
  done
done
