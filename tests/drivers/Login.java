// Logs in with the JVM driver in each way of cases.txt, and says what came of it.

import java.nio.file.Files;
import java.nio.file.Path;
import java.sql.DriverManager;
import java.sql.SQLException;

public class Login {
    static String outcome(String database, String user, String password) {
        var host = System.getenv("PGHOST") + ":" + System.getenv("PGPORT");
        var url = "jdbc:postgresql://" + host + "/" + database + "?sslmode=disable";
        try (var connection = DriverManager.getConnection(url, user, password);
                var query = connection.prepareStatement(
                        "SELECT current_user::text WHERE ? = 1")) {
            query.setInt(1, 1);
            var rows = query.executeQuery();
            rows.next();
            return "in as " + rows.getString(1);
        } catch (SQLException error) {
            return error.getSQLState() + " " + error.getMessage();
        }
    }

    public static void main(String[] arguments) throws Exception {
        for (var line : Files.readAllLines(Path.of(arguments[0]))) {
            var words = line.split(" ");
            System.out.printf("%-28s %s%n", line, outcome(words[0], words[1], words[2]));
        }
    }
}
