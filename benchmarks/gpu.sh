#!/usr/bin/env bash
# The paper's Table 1 on a machine with a GPU: by the paper's protocol, and by dmsflow's own recipe (table1.py).
#
#     benchmarks/gpu.sh DATASET OUT [SECONDS]
#
# It works for SECONDS (540 unless given) and stops; started again, it goes on where it stopped. After every slice
# OUT/results has a file for each protocol, with device, versions, seconds of searches and of trainings. Copy them to
# docs/results, and `make docs`. DATASET is as in dmsflow search: cifar10, or image-folder:PATH.
#
# PYTHON is the interpreter, PROTOCOLS what to run ("toy" tries the script in a minute on any machine).
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "gpu.sh: DATASET and OUT are missing; benchmarks/gpu.sh DATASET OUT [SECONDS]" >&2
    exit 2
fi
dataset=$1 out=$2 end=$((SECONDS + ${3:-540}))
python=${PYTHON:-python} protocols=${PROTOCOLS:-paper long}
study=$(dirname "$0")/table1.py

# The first seed of all rows comes before the others of any, small networks before large ones.
slice() {
    local protocol network rows seeds code
    for seeds in "0" "0 1 2"; do
        for rows in "1x dms-a" "full 2x" "3x 4x dms-b"; do
            for network in vgg11 resnet18; do
                for protocol in $protocols; do
                    [ $SECONDS -lt $end ] || return 0
                    code=0
                    # shellcheck disable=SC2086  # rows and seeds are several words
                    timeout $((end - SECONDS)) "$python" "$study" --protocol "$protocol" --dataset "$dataset" \
                        --networks $network --rows $rows --seeds $seeds --draws 0 \
                        --out "$out/$protocol" --results "$out/results" >/dev/null || code=$?
                    [ $code -eq 0 ] || [ $code -eq 124 ] || return $code # 124: its time was up
                done
            done
        done
    done
    echo "gpu.sh: all of it is done"
}

slice
for protocol in $protocols; do
    "$python" "$study" --protocol "$protocol" --dataset "$dataset" --draws 0 --seeds 0 1 2 --tabulate \
        --out "$out/$protocol" --results "$out/results"
done
