#!/bin/bash
# Runs ringbouncer in front of a throw-away PostgreSQL (or that of PGHOST and PGPORT) until Ctrl-C.
#
# Settings: LISTEN_PORT (6432), PGHOST, PGPORT, PROFILE (release, or debug for a quicker build).

set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
port=${LISTEN_PORT:-6432}
profile=${PROFILE:-release}
dir=
postgres_pid=
pooler_pid=

# end PID SIGNAL: asks a child of ours to end, and after three seconds no longer asks.
end() {
    [ -n "$1" ] || return 0
    local tries=0
    kill "-$2" "$1" 2>/dev/null || return 0
    while kill -0 "$1" 2>/dev/null; do
        tries=$((tries + 1))
        [ $tries -ne 60 ] || kill -KILL "$1" 2>/dev/null || true
        sleep 0.05
    done
}

cleanup() {
    trap '' INT TERM HUP
    end "$pooler_pid" QUIT
    end "$postgres_pid" INT
    [ -z "$dir" ] || rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 0' INT TERM HUP

# PostgreSQL refuses to run as root; so does PgBouncer, whose place we take.
as=()
if [ "$(id -u)" -eq 0 ]; then
    as=(setpriv --reuid=postgres --regid=postgres --init-groups)
fi

build() {
    local flags=()
    [ "$profile" = debug ] || flags=(--release)
    (cd "$here" && "${CARGO:-cargo}" build --quiet "${flags[@]}" --bin ringbouncer)
}

free_port() {
    local candidate
    while :; do
        candidate=$((20000 + RANDOM % 10000))
        (exec 3<>"/dev/tcp/127.0.0.1/$candidate") 2>/dev/null || break
    done
    echo "$candidate"
}

# wait_for PORT PID NAME LOG: until the port answers; fails when the process has ended.
wait_for() {
    local tries=0
    until (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; do
        tries=$((tries + 1))
        if ! kill -0 "$2" 2>/dev/null || [ $tries -gt 600 ]; then
            echo "$3 did not start:" >&2
            cat "$4" >&2
            exit 1
        fi
        sleep 0.05
    done
}

start_postgres() {
    bash "$here/etc/need.sh" postgresql
    local bin
    bin=$(compgen -G '/usr/lib/postgresql/*/bin/initdb' | sort -V | tail -n 1 || true)
    bin=$(dirname "${bin:-$(pg_config --bindir)/initdb}")
    PGPORT=$(free_port)
    "${as[@]}" "$bin/initdb" -D "$dir/data" -U postgres -A trust -E UTF8 --no-sync \
        >"$dir/initdb.log" 2>&1 || { cat "$dir/initdb.log" >&2; exit 1; }
    # A group of its own, so that Ctrl-C reaches it through us alone, after the pooler.
    setsid "${as[@]}" "$bin/postgres" -D "$dir/data" -p "$PGPORT" -c listen_addresses=127.0.0.1 \
        -c unix_socket_directories="$dir" -c fsync=off >"$dir/postgres.log" 2>&1 &
    postgres_pid=$!
    wait_for "$PGPORT" "$postgres_pid" PostgreSQL "$dir/postgres.log"
    PGHOST=127.0.0.1
}

if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
    echo "port $port is in use; LISTEN_PORT=… names another" >&2
    exit 1
fi
build
dir=$(mktemp -d "${TMPDIR:-/tmp}/ringbouncer-run.XXXXXX")
if [ ${#as[@]} -gt 0 ]; then
    bash "$here/etc/need.sh" postgresql
    chown postgres: "$dir"
fi
if [ -z "${PGHOST:-}" ] && [ -z "${PGPORT:-}" ]; then
    start_postgres
fi
server="host=${PGHOST:-127.0.0.1} port=${PGPORT:-5432}"

{
    echo "[databases]"
    echo "* = $server"
    # Behind its own two sections' heads, the sample is used as it is.
    sed -n '/^\[pgbouncer\]/,$p' "$here/etc/ringbouncer.ini" |
        sed -e "s|^listen_port *=.*|listen_port = $port|" \
            -e "s|^auth_file *=.*|auth_file = $dir/userlist.txt|" \
            -e "s|^auth_type *=.*|auth_type = trust|"
} >"$dir/ringbouncer.ini"
user=${PGUSER:-postgres}
printf '"%s" ""\n' "$user" >"$dir/userlist.txt"
chmod 644 "$dir/ringbouncer.ini" "$dir/userlist.txt"
cp "$here/target/$profile/ringbouncer" "$dir/ringbouncer"
chmod 755 "$dir/ringbouncer"

setsid "${as[@]}" "$dir/ringbouncer" "$dir/ringbouncer.ini" > >(cat >&2) 2>&1 &
pooler_pid=$!
wait_for "$port" "$pooler_pid" ringbouncer /dev/null
cat <<HELP

ringbouncer listens on port $port in front of $server. Try:

    psql -h 127.0.0.1 -p $port -U $user postgres

Ctrl-C ends it and removes $dir.
HELP
wait "$pooler_pid" || { status=$?; pooler_pid=; echo "ringbouncer ended: $status" >&2; exit "$status"; }
pooler_pid=
