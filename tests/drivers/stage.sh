#!/bin/sh
# A PostgreSQL and a pooler in front of it, for drivers that are tried by hand:
#
#   sh tests/drivers/stage.sh POOLER COMMAND…
#
# runs COMMAND with PGHOST and PGPORT set to the pooler, and ends both afterwards. Each database asks
# for passwords in the way that its name says. Whoever starts this as root runs the servers as
# `postgres`.
set -eu
pooler=$(realpath "$1")
shift
bin=$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
root=$(mktemp -d /tmp/drivers.XXXXXX)
server=$((20000 + $$ % 10000))
port=$((server + 1))
as=
if [ "$(id -u)" = 0 ]; then
    as="setpriv --reuid=postgres --regid=postgres --clear-groups"
    cp "$pooler" "$root/pooler"
    pooler=$root/pooler
fi
pids=
trap 'kill $pids 2>/dev/null; wait; rm -rf "$root"' EXIT

cat >"$root/pooler.ini" <<INI
[databases]
by_trust = host=127.0.0.1 port=$server dbname=postgres
by_plain = host=127.0.0.1 port=$server dbname=postgres
by_md5 = host=127.0.0.1 port=$server dbname=postgres
by_scram = host=127.0.0.1 port=$server dbname=postgres
by_query = host=127.0.0.1 port=$server dbname=postgres auth_user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = $port
unix_socket_dir =
pool_mode = transaction
auth_type = hba
auth_hba_file = $root/hba
auth_file = $root/userlist.txt
ignore_startup_parameters = extra_float_digits
logfile = $root/log
INI
printf 'host %s all all %s\n' by_trust trust by_plain password by_md5 md5 by_scram scram-sha-256 \
    by_query scram-sha-256 nowhere md5 >"$root/hba"
printf '"alice" "right"\n"postgres" ""\n' >"$root/userlist.txt"
[ -z "$as" ] || chown -R postgres "$root"

$as "$bin/initdb" -D "$root/data" -U postgres -A trust --no-sync >/dev/null
$as "$bin/postgres" -D "$root/data" -h 127.0.0.1 -p "$server" -k "$root" >/dev/null 2>&1 &
pids=$!
until "$bin/pg_isready" -q -h 127.0.0.1 -p "$server"; do sleep 0.1; done
"$bin/psql" -X -q -h 127.0.0.1 -p "$server" -U postgres <<'SQL'
CREATE ROLE alice LOGIN;
CREATE ROLE asked LOGIN PASSWORD 'right';
CREATE ROLE expired LOGIN PASSWORD 'right' VALID UNTIL '2001-01-01';
SQL
$as "$pooler" "$root/pooler.ini" 2>/dev/null &
pids="$pids $!"
until "$bin/pg_isready" -q -h 127.0.0.1 -p "$port"; do sleep 0.1; done

PGHOST=127.0.0.1 PGPORT=$port "$@"
