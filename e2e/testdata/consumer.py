"""A consumer of RabbitMQ whose effect happens once for each message.

    python consumer.py DATABASE_URL AMQP_URL QUEUE

With HOLD=message-id in the environment it stops for good between the effect
and the commit of that message, so that somebody can kill it there.
"""

import os
import sys
import time

import pika
import psycopg

CONSUMER = "python"


def process(connection, consumer, message_id, effect):
    """Runs effect(connection) once for each message and consumer.

    Returns False for a duplicate. An error rolls everything back, and leaves
    the message unseen.
    """
    with connection.transaction():
        new, = connection.execute(
            "SELECT inbox_claim(%s, %s::uuid)", (consumer, message_id)
        ).fetchone()
        if new:
            effect(connection)
        return new


def main(database_url, amqp_url, queue):
    connection = psycopg.connect(database_url, autocommit=True)
    channel = pika.BlockingConnection(pika.URLParameters(amqp_url)).channel()
    channel.basic_qos(prefetch_count=10)

    def on_message(channel, method, properties, body):
        def effect(connection):
            connection.execute(
                "INSERT INTO effects (message_id, body) VALUES (%s::uuid, %s)",
                (properties.message_id, body.decode()),
            )
            if os.environ.get("HOLD") == properties.message_id:
                print("holding", flush=True)
                time.sleep(3600)

        new = process(connection, CONSUMER, properties.message_id, effect)
        print("processed" if new else "duplicate", properties.message_id, flush=True)
        # Only now: what was not acknowledged is delivered again.
        channel.basic_ack(method.delivery_tag)

    channel.basic_consume(queue, on_message)
    channel.start_consuming()


if __name__ == "__main__":
    main(*sys.argv[1:])
