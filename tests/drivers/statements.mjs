// node-postgres with named statements, transactions, errors, and a pool of its own in front of ours.
//
//     sh stage.sh ../../target/debug/ringbouncer node statements.mjs

import pg from "pg";

const CLIENTS = 12, ROUNDS = 80;
const expect = (is) => { if (!is) throw new Error("not as expected"); };

async function work(number) {
    const client = new pg.Client({ database: "by_trust", user: "alice" });
    await client.connect();
    let asked = 0;
    for (let round = 0; round < ROUNDS; round++) {
        // They are under way all at once.
        const answers = await Promise.all([...Array(10).keys()].map((n) => client.query({
            name: `of ${n}`,
            text: `SELECT $1::int + ${n} AS sum, $2::text AS word`,
            values: [round, `${number} ${round}`],
        })));
        answers.forEach((answer, n) => {
            expect(answer.rows[0].sum === round + n && answer.rows[0].word === `${number} ${round}`);
        });
        await client.query("BEGIN");
        await client.query("CREATE TEMP TABLE kept (n int) ON COMMIT DROP");
        await client.query({ name: "fill", text: "INSERT INTO pg_temp.kept SELECT generate_series(1, $1)", values: [50] });
        const count = await client.query("SELECT count(*)::int AS n FROM kept");
        expect(count.rows[0].n === 50);
        await client.query("COMMIT");
        try {
            await client.query({ name: "zero", text: "SELECT 1 / $1::int", values: [0] });
            throw new Error("a division by zero");
        } catch (error) {
            expect(error.code === "22012");
        }
        asked += 15;
    }
    await client.end();
    return asked;
}

const all = await Promise.all([...Array(CLIENTS).keys()].map(work));
console.log(all.reduce((sum, n) => sum + n), "as expected");
