-- A topic is as long as its writer likes, and an index row is not: with the topic
-- in it, a message of a long one could not become a dead letter. Only relays that
-- give a message up wait for this, and who lists the dead letters.
DROP INDEX IF EXISTS {{.Table "_dead_letters_topic_idx"}};
CREATE INDEX {{.Name "_dead_letters_topic_hash_idx"}} ON {{.Table "_dead_letters"}} (hashtextextended(topic, 0), dead_at);
