// Package parked keeps the messages that a consumer could not process, in a
// table beside the inbox, so that the messages behind them go on. The consumers
// of inbox/kafka and inbox/rabbitmq put them there; an application shows them
// to its operators and tries them again:
//
//	lot := parked.Lot{Inbox: box}
//
//	messages, err := lot.List(ctx, pool, parked.Filter{})
//	for _, m := range messages {
//		fmt.Println(m.Number, m.ParkedAt, m.Topic, m.ID, m.Attempts, m.Error)
//	}
//	result, err := lot.Retry(ctx, pool, messages[0].Number, handler)
//
// A retry goes through the inbox, so the effect of a message happens once,
// also when it was delivered again in the meantime and processed then.
//
// A parked message is overtaken by the later ones of its key: that is what
// parking means. Where that matters set Inbox.Order, or a MaxAttempts that no
// message reaches, so that the consumer waits instead.
//
// # Requirements
//
// The table, inbox_parked unless the inbox has another name, comes with `relay
// migrate --only inbox`. The role that consumes needs
//
//	GRANT SELECT, INSERT, UPDATE, DELETE ON public.inbox_parked TO app;
//
// Anybody may read it by SQL:
//
//	SELECT number, consumer, topic, message_id, attempts, error, parked_at FROM inbox_parked ORDER BY number;
//
// Rows stay until they are retried or discarded: nothing prunes them.
package parked
