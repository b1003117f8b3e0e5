#!/bin/sh
# Starts as many processes as are asked for, each with its rank.
set -eu
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD:${PYTHONPATH:-}"
WORLD_SIZE="${1:?how many processes}"
shift
rank=0
while [ "$rank" -lt "$WORLD_SIZE" ]; do
    RANK=$rank WORLD_SIZE=$WORLD_SIZE python -m engine.main \
        --output ./runs \
        "$@"
    rank=$((rank + 1))
done
