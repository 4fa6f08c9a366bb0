"""Protocol 3.2 with libpq 18 (psycopg 3.3 and later bundle it): logins, queries, pipelines, COPY, and
requests to cancel with keys of 32 bytes, each of which must hit its own query and no other.

    sh stage.sh ../../target/debug/ringbouncer python3 protocol32.py
    PGHOST=… PGPORT=… PGUSER=alice PGDATABASE=… python3 protocol32.py    # PostgreSQL 18, to compare
"""

import os
import random

from psycopg import pq

CONNECTIONS, ROUNDS = 6, 40
WORDS = "min_protocol_version=3.2 max_protocol_version=latest"
os.environ.setdefault("PGUSER", "alice")
os.environ.setdefault("PGDATABASE", "by_trust")


def connect(words=WORDS):
    connection = pq.PGconn.connect(words.encode())
    assert connection.status == pq.ConnStatus.OK, connection.get_error_message()
    return connection


def value(connection, sql):
    result = connection.exec_(sql.encode())
    assert result.status == pq.ExecStatus.TUPLES_OK, result.error_message
    return result.get_value(0, 0).decode()


def versions():
    for words, expected in (
        ("", 30000),
        ("max_protocol_version=3.0", 30000),
        ("max_protocol_version=3.2", 30002),
        ("max_protocol_version=latest", 30002),
        (WORDS, 30002),
    ):
        connection = connect(words)
        assert connection.full_protocol_version == expected, words
        assert value(connection, "SELECT 1") == "1"
        connection.finish()


def until_asleep(number, watcher):
    sql = f"SELECT count(*) FROM pg_stat_activity WHERE query = '{sleep(number)}' AND wait_event = 'PgSleep'"
    while value(watcher, sql) != "1":
        pass


def sleep(number):
    return f"SELECT pg_sleep(600) /* of {number} in {os.getpid()} */".replace("'", "''")


def outcomes(connection):
    found = []
    while True:
        result = connection.get_result()
        if result is None:
            return found
        state = result.error_field(pq.DiagnosticField.SQLSTATE)
        found.append(state.decode() if state else pq.ExecStatus(result.status).name)


def cancels():
    """With both of libpq's ways, in a random order."""
    watcher = connect()
    # In transactions, so that each keeps its server.
    sleepers = [connect() for _ in range(CONNECTIONS)]
    cancelled = 0
    for turn in range(ROUNDS):
        for number, connection in enumerate(sleepers):
            connection.exec_(b"BEGIN")
            connection.send_query(sleep(f"{number}-{turn}").encode())
            until_asleep(f"{number}-{turn}", watcher)
        order = random.sample(range(CONNECTIONS), CONNECTIONS)
        for at, number in enumerate(order):
            if turn % 2:
                sleepers[number].get_cancel().cancel()
            else:
                request = sleepers[number].cancel_conn()
                request.start()
                while request.poll() != pq.PollingStatus.OK:
                    pass
                request.finish()
            assert outcomes(sleepers[number]) == ["57014"]
            cancelled += 1
            for other in order[at + 1 :]:
                sleepers[other].consume_input()
                assert sleepers[other].is_busy(), "it was meant for another"
        for connection in sleepers:
            connection.exec_(b"ROLLBACK")
    return cancelled


def pipelines():
    connection, watcher = connect(), connect()
    for turn in range(ROUNDS):
        connection.enter_pipeline_mode()
        for number in range(10):
            connection.send_query_params(f"SELECT {number}".encode(), None)
        connection.pipeline_sync()
        connection.send_query_params(sleep(f"pipeline {turn}").encode(), None)
        connection.send_query_params(b"SELECT 'never'", None)
        connection.pipeline_sync()
        connection.send_query_params(b"SELECT 'again'", None)
        connection.pipeline_sync()
        until_asleep(f"pipeline {turn}", watcher)
        connection.get_cancel().cancel()
        found = []
        while found.count("PIPELINE_SYNC") < 3:
            found += outcomes(connection)
        expected = ["TUPLES_OK"] * 10 + ["PIPELINE_SYNC", "57014", "PIPELINE_ABORTED"]
        assert found == expected + ["PIPELINE_SYNC", "TUPLES_OK", "PIPELINE_SYNC"], found
        assert outcomes(connection) == []
        connection.exit_pipeline_mode()
    return ROUNDS


def copies():
    connection = connect()
    connection.exec_(b"BEGIN")
    connection.exec_(b"CREATE TEMPORARY TABLE t (n int) ON COMMIT DROP")
    assert connection.exec_(b"COPY t FROM STDIN").status == pq.ExecStatus.COPY_IN
    for number in range(10_000):
        connection.put_copy_data(f"{number}\n".encode())
    connection.put_copy_end()
    assert outcomes(connection) == ["COMMAND_OK"]
    assert value(connection, "SELECT sum(n) FROM t") == "49995000"
    assert connection.exec_(b"COPY t TO STDOUT").status == pq.ExecStatus.COPY_OUT
    lines = 0
    while connection.get_copy_data(0)[0] > 0:
        lines += 1
    assert (lines, outcomes(connection)) == (10_000, ["COMMAND_OK"])
    connection.exec_(b"COMMIT")
    return lines


assert pq.version() >= 180000, pq.version()
versions()
print("cancelled", cancels(), "each its own")
print("pipelines", pipelines())
print("copied", copies())
