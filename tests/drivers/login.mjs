// Logs in with node-postgres in each way of cases.txt, and says what came of it.

import { readFileSync } from "node:fs";
import pg from "pg";

for (const line of readFileSync(new URL("cases.txt", import.meta.url), "utf8").trim().split("\n")) {
    const [database, user, password] = line.split(" ");
    const client = new pg.Client({ database, user, password });
    client.on("error", () => {});
    let outcome;
    try {
        await client.connect();
        const answer = await client.query("SELECT current_user::text AS name WHERE $1 = 1", [1]);
        outcome = `in as ${answer.rows[0].name}`;
        await client.end();
    } catch (error) {
        outcome = `${error.severity} ${error.code} ${error.message}`;
    }
    console.log(line.padEnd(28), outcome);
}
