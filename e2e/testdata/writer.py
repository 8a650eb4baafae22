"""Writes JSON to the outbox as people do with psycopg.

    python writer.py DATABASE_URL TOPIC COLUMN < messages

Each line of the input is the message's id, a space, and JSON text.
"""

import sys

import psycopg

database, topic, column = sys.argv[1:]
with psycopg.connect(database, autocommit=True) as connection:
    for line in sys.stdin.buffer.read().decode().splitlines():
        message_id, text = line.split(" ", 1)
        with connection.transaction():
            connection.execute(
                f"INSERT INTO outbox (message_id, topic, key, type, {column}) VALUES (%s, %s, %s, 'Tested', %s)",
                (message_id, topic, message_id, text),
            )
