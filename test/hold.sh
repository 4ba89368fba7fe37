#!/bin/sh
# Usage: hold.sh SSED HOLD [OPTION...]
# Starts the server and has HOLD keep 10,000 subscribers on it, each on a
# processor of its own.
set -eu
ssed=$1 hold=$2
shift 2
log=$(mktemp)
taskset -c 0 "$ssed" --port 0 --interval 0 --history 10000 2>"$log" &
server=$!
trap 'kill $server 2>/dev/null; rm -f "$log"' EXIT
until port=$(sed -n 's/.*event=listening address=127.0.0.1:\([0-9]*\).*/\1/p' \
    "$log") && [ -n "$port" ]; do
    kill -0 $server
done
taskset -c "$(($(nproc) > 1))" "$hold" --port "$port" --pid $server --subscribers 10000 --publish-rate 5 \
    --seconds 20 "$@"
