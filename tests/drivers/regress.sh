#!/bin/sh
# PostgreSQL's own regression scripts, twice beside the pooler and once through it, in session mode:
#
#   sh tests/drivers/regress.sh POOLER REGRESS [TEST…]
#
# REGRESS is the directory src/test/regress of PostgreSQL's source, for instance from
# `apt-get source --download-only postgresql-15`. Each way has a cluster of its own. What the scripts
# print through the pooler has to be what they print without it; where it is not, that is shown, and
# whether two runs without the pooler agree at that place at all.
#
# Whoever starts this as root runs the servers as `postgres`. (What needs PostgreSQL's test library,
# which no package has, fails alike on either way.)
set -eu
pooler=$(realpath "$1")
regress=$(realpath "$2")
shift 2
bin=$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
root=$(mktemp -d /tmp/regress.XXXXXX)
port=$((20000 + $$ % 10000))
as=
if [ "$(id -u)" = 0 ]; then
    as="setpriv --reuid=postgres --regid=postgres --clear-groups"
    cp "$pooler" "$root/pooler"
    pooler=$root/pooler
fi
pids=
trap 'kill $pids 2>/dev/null; wait; rm -rf "$root"' EXIT
tests=$*
[ -n "$tests" ] || tests=$(sed -n 's/^test: //p' "$regress/parallel_schedule")

cat >"$root/pooler.ini" <<INI
[databases]
* = host=127.0.0.1 port=$((port + 2)) auth_user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = $((port + 3))
unix_socket_dir =
pool_mode = session
default_pool_size = 20
auth_type = trust
auth_file = $root/userlist.txt
logfile = $root/log
INI
echo '"postgres" ""' >"$root/userlist.txt"
[ -z "$as" ] || chown -R postgres "$root"

# start NUMBER: a cluster on that port. Time zone and styles are the database's own, not the client's:
# what a client asks for in its Startup a pooler has to SET, and then RESET does not lead back to it.
start() {
    $as "$bin/initdb" -D "$root/data$1" -U postgres -A trust --locale=C -E UTF8 --no-sync >/dev/null
    $as "$bin/postgres" -D "$root/data$1" -h 127.0.0.1 -p $((port + $1)) -k "$root" \
        -c fsync=off -c autovacuum=off -c max_prepared_transactions=2 >/dev/null 2>&1 &
    pids="$pids $!"
    until "$bin/pg_isready" -q -h 127.0.0.1 -p $((port + $1)); do sleep 0.1; done
    "$bin/psql" -X -q -h 127.0.0.1 -p $((port + $1)) -U postgres \
        -c "CREATE DATABASE regression TEMPLATE=template0" \
        -c "ALTER DATABASE regression SET lc_messages TO 'C'" \
        -c "ALTER DATABASE regression SET lc_monetary TO 'C'" \
        -c "ALTER DATABASE regression SET lc_numeric TO 'C'" \
        -c "ALTER DATABASE regression SET lc_time TO 'C'" \
        -c "ALTER DATABASE regression SET bytea_output TO 'hex'" \
        -c "ALTER DATABASE regression SET timezone_abbreviations TO 'Default'" \
        -c "ALTER DATABASE regression SET timezone TO 'PST8PDT'" \
        -c "ALTER DATABASE regression SET datestyle TO 'Postgres, MDY'" \
        -c "ALTER DATABASE regression SET intervalstyle TO 'postgres_verbose'"
}

# run WAY PORT: all scripts, one after the other.
run() {
    mkdir "$root/out$1"
    for test in $tests; do
        PGHOST=127.0.0.1 PGPORT=$2 PGUSER=postgres PG_ABS_SRCDIR="$regress" PG_LIBDIR=/nowhere \
            PG_DLSUFFIX=.so PG_ABS_BUILDDIR="$root" \
            "$bin/psql" -X -a -q -d regression -v HIDE_TABLEAM=on -v HIDE_TOAST_COMPRESSION=on \
            -f "$regress/sql/$test.sql" 2>&1 |
            sed -e "s/port $2/port N/g" -e "s/\"$2\"/\"N\"/g" >"$root/out$1/$test" || true
    done
}

for number in 0 1 2; do start $number; done
$as "$pooler" "$root/pooler.ini" 2>/dev/null &
pids="$pids $!"
until "$bin/pg_isready" -q -h 127.0.0.1 -p $((port + 3)); do sleep 0.1; done
run 0 "$port" &
first=$!
run 1 $((port + 1)) &
second=$!
run 2 $((port + 3))
wait $first $second

same=0
for test in $tests; do
    if cmp -s "$root/out0/$test" "$root/out2/$test"; then
        same=$((same + 1))
        continue
    fi
    [ -n "${KEEP:-}" ] && mkdir -p "$KEEP" && cp "$root/out0/$test" "$KEEP/$test.direct" &&
        cp "$root/out2/$test" "$KEEP/$test.pooled"
    diff "$root/out0/$test" "$root/out2/$test" >"$root/pooled" || true
    diff "$root/out0/$test" "$root/out1/$test" >"$root/direct" || true
    echo "$test: $(grep -c '^[<>]' "$root/pooled" || true) lines differ through the pooler," \
        "$(grep -c '^[<>]' "$root/direct" || true) without it"
    head -n 6 "$root/pooled" | cut -c1-160
done
echo "$same of $(echo $tests | wc -w) scripts print the same; $(cat "$root"/out2/* | wc -l) lines"
