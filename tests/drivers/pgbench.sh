#!/bin/sh
# pgbench in all its protocols, prepared statements and pipelines among them, many clients on few
# servers; what has been booked has to agree in the end.
#
#     sh stage.sh ../../target/debug/ringbouncer sh pgbench.sh
set -eu
export PGUSER=postgres PGDATABASE=by_trust
pipeline=$(mktemp)
trap 'rm -f "$pipeline"' EXIT
cat >"$pipeline" <<'SQL'
\startpipeline
SELECT abalance FROM pgbench_accounts WHERE aid = :client_id + 1;
SELECT :client_id + 1 AS one;
SELECT 2 AS two;
\endpipeline
SQL
pgbench -q -i -s 2 2>/dev/null
for protocol in simple extended prepared; do
    pgbench -n -M $protocol -c 20 -j 2 -T 3 2>&1 | grep -E 'processed|failed|aborted|tps'
done
pgbench -n -M prepared -f "$pipeline" -c 20 -j 2 -T 3 2>&1 | grep -E 'processed|failed|aborted|tps'
psql -X -At -c "SELECT 'books agree: ' || (
    (SELECT sum(bbalance) FROM pgbench_branches) = (SELECT sum(tbalance) FROM pgbench_tellers)
    AND (SELECT sum(bbalance) FROM pgbench_branches) = (SELECT sum(abalance) FROM pgbench_accounts)
    AND (SELECT sum(bbalance) FROM pgbench_branches) = (SELECT sum(delta) FROM pgbench_history))"
