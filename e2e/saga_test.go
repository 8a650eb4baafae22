package e2e_test

import (
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/outboxrelay/relay/e2e/scenario"
)

const (
	// sagaOrders is how many orders there are, sagaOrdersSoak in a soak.
	sagaOrders, sagaOrdersSoak = 300, 5000
	// sagaLimit bounds what is left to do after the last kill.
	sagaLimit = 3 * time.Minute
)

// The services of examples/saga and their relays are killed at random while
// orders run, of which some cannot be paid and some are out of stock. Each order
// ends paid and reserved, or cancelled with all undone; and so it stays when
// every message that there was is delivered once more.
func TestSaga(t *testing.T) {
	t.Parallel()
	orders := sagaOrders
	if os.Getenv(scenario.LanesVariable) == "all" {
		orders = sagaOrdersSoak
	}
	s := newSaga(t, orders)
	s.start()
	calm := s.harass()
	s.place(orders, 40)
	kills := calm()
	if kills < 10 {
		t.Errorf("%d kills, which test little", kills)
	}
	s.settle()
	s.verify()

	// A second time, the inboxes alone stand between the messages and their
	// effects.
	s.rewind()
	s.settle()
	s.verify()
	duplicates := s.sum(`inbox_messages_total{`, `result="duplicate"`)
	if messages := s.delivered(); duplicates < float64(messages) {
		t.Errorf("the inboxes refused %v messages, want the %d that came again", duplicates, messages)
	}
	s.expectHealth()
	s.stop()
}

// The check can fail: without inboxes a message that comes again takes the money
// again.
func TestSagaWithoutInboxesIsFound(t *testing.T) {
	t.Parallel()
	const orders = 40
	s := newSaga(t, orders)
	for _, service := range s.services {
		// Each message is new to the inbox.
		service.Exec(t, `
CREATE FUNCTION forget() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.message_id := gen_random_uuid(); RETURN NEW; END';
CREATE TRIGGER forget BEFORE INSERT ON inbox FOR EACH ROW EXECUTE FUNCTION forget()`)
	}
	s.start()
	s.place(orders, 200)
	s.settle()
	if violations := s.checkEffects(); len(violations) > 0 {
		t.Errorf("nothing came again, and there are violations:\n%s", strings.Join(violations, "\n"))
	}
	s.rewind()
	s.settle()
	violations := s.checkEffects()
	if len(violations) == 0 {
		t.Error("all messages came again without inboxes, and the check found nothing")
	}
	t.Logf("%d violations, the first of them: %v", len(violations), violations[:min(3, len(violations))])
	s.stop()
}

// expectHealth asks each service for its health.
func (s *saga) expectHealth() {
	s.t.Helper()
	for _, service := range s.services {
		for _, address := range service.addresses {
			if status, body := get(s.t, "http://"+address+"/healthz"); status != http.StatusOK {
				s.t.Errorf("/healthz of %s answers %d: %s", service.name, status, body)
			}
		}
	}
}
