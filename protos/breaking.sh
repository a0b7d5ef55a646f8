#!/bin/sh
# Compares the contract with the last release tag, or with its first version if there is no release yet.
set -eu
buf=$1
base=$(git describe --tags --abbrev=0 --match 'v*' 2>/dev/null || git rev-list --max-parents=0 HEAD -- protos | tail -n 1)
if [ -z "$base" ]; then
  echo "proto: no earlier contract to compare with (shallow clone?)"
  exit 0
fi
exec "$buf" breaking --against ".git#ref=$base"
