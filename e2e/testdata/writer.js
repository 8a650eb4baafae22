// Writes JSON to the outbox as people do with node-postgres.
//
//     node writer.js DATABASE_URL TOPIC COLUMN < messages
//
// Each line of the input is the message's id, a space, and JSON text.
const { readFileSync } = require("node:fs");
const { Client } = require("pg");

async function main([database, topic, column]) {
  const client = new Client({ connectionString: database });
  await client.connect();
  for (const line of readFileSync(0, "utf8").split("\n").filter(Boolean)) {
    const space = line.indexOf(" ");
    const id = line.slice(0, space);
    await client.query("BEGIN");
    await client.query(
      `INSERT INTO outbox (message_id, topic, key, type, ${column}) VALUES ($1, $2, $3, 'Tested', $4)`,
      [id, topic, id, line.slice(space + 1)],
    );
    await client.query("COMMIT");
  }
  await client.end();
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error);
  process.exit(1);
});
