"""libpq's pipeline mode through psycopg 3: pipelines with errors, statements that are prepared after
some uses, COPY in between, and many connections at once. Each answer is compared with what is known.

    sh stage.sh ../../target/debug/ringbouncer python3 pipeline.py
"""

import concurrent.futures
import sys

import psycopg
from psycopg import errors

DATABASE, CONNECTIONS, ROUNDS = "by_trust", 8, 60


def connect(**more):
    return psycopg.connect(dbname=DATABASE, user="alice", **more)


def pipelines(number):
    """Many statements under way; more than five uses, so psycopg prepares them."""
    asked = 0
    with connect(autocommit=True, prepare_threshold=3) as connection:
        for turn in range(ROUNDS):
            with connection.pipeline() as pipeline:
                cursors = []
                for n in range(40):
                    sql = f"SELECT %s::int + {n % 7}, %s::text"
                    cursors.append((n, connection.execute(sql, (n, f"{number}-{turn}"))))
                    if n % 11 == 0:
                        pipeline.sync()
                for n, cursor in cursors:
                    assert cursor.fetchone() == (n + n % 7, f"{number}-{turn}")
                    asked += 1
    return asked


def failing(number):
    """An error in a pipeline takes the rest up to its Sync along, and nothing else."""
    asked = 0
    with connect(autocommit=True, prepare_threshold=2) as connection:
        for turn in range(ROUNDS):
            try:
                with connection.pipeline() as pipeline:
                    first = connection.execute("SELECT %s::int", (turn,))
                    pipeline.sync()
                    connection.execute("SELECT 1 / %s::int", (0,))
                    skipped = connection.execute("SELECT %s::text", ("never",))
                    pipeline.sync()
                    last = connection.execute("SELECT %s::int * 2", (turn,))
                    assert first.fetchone() == (turn,)
                    assert last.fetchone() == (2 * turn,)
                raise AssertionError("a division by zero")
            except errors.DivisionByZero:
                pass
            except errors.PipelineAborted:
                pass
            assert connection.execute("SELECT %s::int", (number,)).fetchone() == (number,)
            asked += 4
    return asked


def transactions(number):
    """Transactions, savepoints and COPY, some of which fail."""
    asked = 0
    with connect(prepare_threshold=2) as connection:
        connection.autocommit = True
        for turn in range(ROUNDS // 4):
            with connection.transaction():
                connection.execute("CREATE TEMP TABLE kept (n int, t text) ON COMMIT DROP")
                with connection.cursor().copy("COPY kept FROM STDIN") as copy:
                    for n in range(500):
                        copy.write_row((n, "x" * (n % 100)))
                try:
                    with connection.transaction():
                        connection.execute("SELECT %s::int / 0", (turn,))
                except errors.DivisionByZero:
                    pass
                try:
                    with connection.transaction():
                        with connection.cursor().copy("COPY kept FROM STDIN") as copy:
                            copy.write(b"no number\tx\n" * 1000)
                except errors.InvalidTextRepresentation:
                    pass
                with connection.cursor().copy("COPY kept TO STDOUT") as copy:
                    rows = [row for row in copy.rows()]
                assert len(rows) == 500 and rows[499] == ("499", "x" * 99)
                (count,) = connection.execute("SELECT count(*) FROM kept").fetchone()
                assert count == 500
                asked += 5
    return asked


def cursors(number):
    """Cursors on the server, which live as long as their transaction, and single rows."""
    asked = 0
    with connect() as connection:
        for turn in range(ROUNDS // 4):
            with connection.cursor(name=f"rows_{number}") as cursor:
                cursor.itersize = 7
                cursor.execute("SELECT generate_series(1, %s)", (50,))
                assert [n for (n,) in cursor] == list(range(1, 51))
            stream = connection.cursor().stream("SELECT generate_series(1, %s)", (50,))
            assert [n for (n,) in stream] == list(range(1, 51))
            connection.commit()
            asked += 2
    return asked


with concurrent.futures.ThreadPoolExecutor(4 * CONNECTIONS) as pool:
    jobs = {
        kind.__name__: [pool.submit(kind, number) for number in range(CONNECTIONS)]
        for kind in (pipelines, failing, transactions, cursors)
    }
    for name, futures in jobs.items():
        print(f"{name:14}", sum(future.result() for future in futures), "as expected")
print("psycopg", psycopg.__version__, "libpq", psycopg.pq.version())
sys.exit(0)
