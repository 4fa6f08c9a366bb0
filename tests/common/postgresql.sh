# The keeper of the shared PostgreSQL: starts it, waits until no test uses it, removes everything.
#
# usage: sh postgresql.sh BIN_DIR LOCK_DIR DATA_ROOT PORT RUN_AS…
# LOCK_DIR/users is locked (shared) by each test process as long as it lives;
# LOCK_DIR/start is locked (exclusively) by whoever starts or stops PostgreSQL.

bin=$1 locks=$2 root=$3 port=$4
shift 4
cd / || exit 1
trap '' HUP INT TERM PIPE

"$@" "$bin/initdb" -D "$root/data" -U postgres -A trust -E UTF8 --locale=C --no-sync \
    >"$root/initdb.log" 2>&1 || exit 1
# Members of these roles have to prove themselves, by the method that the role names.
{
    echo 'host all +by_password all password'
    echo 'host all +by_md5 all md5'
    echo 'host all +by_scram all scram-sha-256'
    cat "$root/data/pg_hba.conf"
} >"$root/hba" && cat "$root/hba" >"$root/data/pg_hba.conf"
cat >>"$root/data/postgresql.conf" <<CONF
listen_addresses = '127.0.0.1'
port = $port
unix_socket_directories = '$root'
max_connections = 200
shared_preload_libraries = 'pg_stat_statements'
superuser_reserved_connections = 0
max_wal_senders = 0
wal_level = minimal
shared_buffers = 32MB
fsync = off
synchronous_commit = off
full_page_writes = off
autovacuum = off
timezone = 'UTC'
log_timezone = 'UTC'
CONF
"$@" "$bin/postgres" -D "$root/data" >"$root/postgres.log" 2>&1 &

stop() {
    postmaster=$(head -n 1 "$root/data/postmaster.pid" 2>/dev/null)
    [ -n "$postmaster" ] && kill -QUIT "$postmaster"
    wait
    rm -rf "$root"
}

# The starter holds `start` until PostgreSQL answers, so the first round ends no earlier than that.
while :; do
    flock -x "$locks/users" true
    # Linger: with `cargo test` the next test binary comes a moment after the last one.
    sleep 3
    exec 8>>"$locks/start" 9>>"$locks/users"
    if flock -n -x 8 && flock -n -x 9; then
        rm -f "$locks/address"
        stop
        exit 0
    fi
    exec 8>&- 9>&-
done
