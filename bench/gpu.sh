#!/bin/sh
# Measures the CUDA path in under nine minutes: whether it is exact, how fast it is beside its peers, and where the
# time goes.
#
#   sh bench/gpu.sh [FOLDER]             keeps logs in FOLDER, by default bench/results/gpu-DATE
#   sh bench/gpu.sh --dry-run [FOLDER]   runs every part in small, on the CPU
#
# PYTHON (python3) needs torch with CUDA, transformers, sentence-transformers, rich and pytest, but no network and no
# generated stubs. OTHER_PYTHON, if set, has another torch: both embed the same texts. A part that fails or exceeds its
# limit does not stop the others. The last line says what ran and what did not. Log lines that begin with { are figures.
set -u

device=cuda
if [ "${1:-}" = --dry-run ]; then
    device=cpu
    shift
fi
root=$(cd "$(dirname "$0")/.." && pwd) || exit 1
out=${1:-$root/bench/results/gpu-$(date -u +%Y-%m-%d)}
python=${PYTHON:-python3}
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
mkdir -p "$out" && out=$(cd "$out" && pwd) && cd "$root" || exit 1
for file in machine.log tests.log exactness.log profile.log embed.log rerank.log torch.log summary.txt; do
    rm -f "$out/$file"
done

if [ $device = cuda ]; then
    small=0.6b
    models="$small 8b-9layers 4b-9layers" # a quarter of their layers: the same products, and less to load
    texts=512 documents=50 queries=16 few=48 step=16384
    embed_sizes=32,128 rerank_sizes=16,64 repeats=5 slack=1
    if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
        echo "bench/gpu.sh: $python has no torch that sees a CUDA device; --dry-run runs every part on the CPU" >&2
        exit 1
    fi
else
    small=tiny-1layers
    models=$small
    texts=4 documents=10 queries=1 few=4 step=100
    embed_sizes=4 rerank_sizes=8 repeats=1 slack=6 # times as long on a slow machine
    export OMP_WAIT_POLICY=passive # no one reads the figures
fi

start=$(date +%s)
total_s=${TOTAL_S:-$((530 * slack))} # more than all limits together
ran='' missed=''

# part LOG NAME LIMIT_S COMMAND...
part() {
    log=$out/$1.log name=$2 limit=$(($3 * slack))
    shift 3
    left=$((start + total_s - $(date +%s)))
    [ "$limit" -le "$left" ] || limit=$left
    if [ "$limit" -lt 5 ]; then
        outcome "$name" 0 "no time left"
        return
    fi
    printf '\n== %s: %s\n' "$name" "$*" >>"$log"
    began=$(date +%s)
    timeout -k 5 "$limit" "$@" >>"$log" 2>&1
    status=$?
    case $status in
    0) why='' ;;
    124 | 137) why="over its limit of $limit s" ;;
    *) why="exit status $status" ;;
    esac
    outcome "$name" $(($(date +%s) - began)) "$why"
}

# outcome NAME SECONDS WHY_NOT
outcome() {
    if [ -z "$3" ]; then
        ran="$ran $1"
    else
        missed="$missed; $1: $3"
    fi
    printf '%-18s %4s s  %s\n' "$1" "$2" "${3:-ok}" | tee -a "$out/summary.txt"
}

bench() {
    command=$1 model=$2
    shift 2
    set -- "$python" -m bench "$command" --model "$model" --device $device --json "$@"
    part "$command" "$command-$model" "$limit_s" "$@"
}

beside_peers() {
    bench "$@" --subjects winnow,recipe,sentence-transformers --repeats $repeats
}

part machine machine 20 "$python" -c 'from bench.machine import facts; print(facts("cuda"))'
# Without the repository's own options and fixtures, which need more than is promised above.
part tests tests 70 "$python" -m pytest -q -rs -c /dev/null --rootdir . -p no:cacheprovider --import-mode importlib \
    --confcutdir tests/unit/engine tests/unit/engine/devices/test_cuda.py
limit_s=45 && bench exactness $small --texts $few
limit_s=40 && bench profile $small --tokens $step
for model in $models; do
    limit_s=58 && beside_peers embed "$model" --cases short,mixed --texts $texts --batch-sizes $embed_sizes
    limit_s=44 && beside_peers rerank "$model" --cases $documents --queries $queries --batch-sizes $rerank_sizes
done
if [ -n "${OTHER_PYTHON:-}" ]; then
    for interpreter in "$python" "$OTHER_PYTHON"; do
        version=$("$interpreter" -c 'import torch; print(torch.__version__)' 2>/dev/null)
        part torch "torch-${version:-missing}" 20 "$interpreter" -m bench embed --model $small --device $device --json \
            --texts $texts --repeats $repeats --subjects winnow --cases mixed
    done
else
    outcome torch 0 "OTHER_PYTHON names no second torch"
fi

echo "ran:$ran; did not:${missed:- none}" | sed 's/did not:;/did not:/' | tee -a "$out/summary.txt"
[ -z "$missed" ]
