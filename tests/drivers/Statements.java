// The JVM driver with its defaults: a statement gets a name when it has been used five times, batches
// are pipelined, cursors fetch in portions. Transactions, errors and DEALLOCATE ALL in between, from
// many threads through few servers.
//
//     sh stage.sh ../../target/debug/ringbouncer java -cp "/usr/share/java/*" Statements.java

import java.sql.*;
import java.util.*;
import java.util.concurrent.*;

class Statements {
    static final int THREADS = 12, ROUNDS = 60;

    static Connection connect() throws SQLException {
        String address = System.getenv("PGHOST") + ":" + System.getenv("PGPORT");
        return DriverManager.getConnection("jdbc:postgresql://" + address + "/by_trust", "alice", "");
    }

    static void expect(boolean is) {
        if (!is) throw new AssertionError();
    }

    static int work(int number) throws SQLException {
        int asked = 0;
        try (Connection connection = connect()) {
            List<PreparedStatement> statements = new ArrayList<>();
            for (int n = 0; n < 10; n++)
                statements.add(connection.prepareStatement("SELECT ?::int + " + n + ", ?::text"));
            for (int round = 0; round < ROUNDS; round++) {
                for (int n = 0; n < statements.size(); n++) {
                    PreparedStatement statement = statements.get(n);
                    statement.setInt(1, round);
                    statement.setString(2, number + " " + round);
                    try (ResultSet rows = statement.executeQuery()) {
                        expect(rows.next() && rows.getInt(1) == round + n);
                        expect(rows.getString(2).equals(number + " " + round));
                        asked++;
                    }
                }
                connection.setAutoCommit(false);
                try (Statement plain = connection.createStatement()) {
                    plain.execute("CREATE TEMP TABLE kept (n int PRIMARY KEY) ON COMMIT DROP");
                }
                try (PreparedStatement insert = connection.prepareStatement("INSERT INTO kept VALUES (?)")) {
                    for (int n = 0; n < 300; n++) {
                        insert.setInt(1, n);
                        insert.addBatch();
                    }
                    expect(insert.executeBatch().length == 300);
                    Savepoint before = connection.setSavepoint();
                    insert.setInt(1, 7);
                    try {
                        insert.executeUpdate();
                        throw new AssertionError("twice the same key");
                    } catch (SQLException error) {
                        expect(error.getSQLState().equals("23505"));
                    }
                    connection.rollback(before);
                }
                try (PreparedStatement all = connection.prepareStatement("SELECT n FROM kept ORDER BY n")) {
                    all.setFetchSize(40);
                    int n = 0;
                    try (ResultSet rows = all.executeQuery()) {
                        while (rows.next()) expect(rows.getInt(1) == n++);
                    }
                    expect(n == 300);
                }
                connection.commit();
                connection.setAutoCommit(true);
                asked += 4;
                if (round % 20 == 19) {
                    try (Statement plain = connection.createStatement()) {
                        plain.execute("DEALLOCATE ALL");
                    }
                }
            }
        }
        return asked;
    }

    public static void main(String[] args) throws Exception {
        ExecutorService pool = Executors.newFixedThreadPool(THREADS);
        List<Future<Integer>> jobs = new ArrayList<>();
        for (int n = 0; n < THREADS; n++) {
            int number = n;
            jobs.add(pool.submit(() -> work(number)));
        }
        int asked = 0;
        for (Future<Integer> job : jobs) asked += job.get();
        pool.shutdown();
        System.out.println(asked + " as expected, with " + DriverManager.getDriver("jdbc:postgresql:").getMajorVersion());
    }
}
