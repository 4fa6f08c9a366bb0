"""Logs in with psycopg (libpq) in each way of cases.txt, and says what came of it."""

import os
import pathlib

import psycopg


def outcome(database, user, password):
    try:
        with psycopg.connect(dbname=database, user=user, password=password) as connection:
            (name,) = connection.execute("SELECT current_user::text WHERE %s = 1", (1,)).fetchone()
            return f"in as {name}"
    except psycopg.OperationalError as error:
        # libpq tells no SQLSTATE of a connection that never was.
        return str(error).rsplit("failed: ", 1)[-1].strip()


for case in (pathlib.Path(__file__).parent / "cases.txt").read_text().splitlines():
    print(f"{case:28}", outcome(*case.split()))
print("psycopg", psycopg.__version__, "libpq", psycopg.pq.version(), "at", os.environ["PGPORT"])
