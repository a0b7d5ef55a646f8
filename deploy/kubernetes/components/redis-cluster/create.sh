# Creates the cluster when all six nodes respond. Does nothing if it exists already.
set -eu
nodes=""
for i in 0 1 2 3 4 5; do
  host="winnow-index-$i.winnow-index"
  until redis-cli -h "$host" ping | grep -q PONG; do sleep 1; done
  nodes="$nodes $(getent hosts "$host" | awk '{print $1; exit}'):6379"
done
if redis-cli -h winnow-index-0.winnow-index cluster info | grep -q cluster_slots_assigned:16384; then
  echo "the cluster exists"
  exit 0
fi
# shellcheck disable=SC2086
redis-cli --cluster create $nodes --cluster-replicas 1 --cluster-yes
