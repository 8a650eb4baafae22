// Package e2e_test plays the scenarios that every release has to pass, with the
// relay's real binary between real servers.
package e2e_test

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/outboxrelay/relay/e2e/scenario"
	"github.com/outboxrelay/relay/e2e/servers"
)

func TestMain(m *testing.M) {
	code := scenario.Main(m)
	secured.close(code != 0)
	os.Exit(code)
}

// secured is the one secure Kafka of the tests that do not break it, started by
// the first that needs it. Besides servers.KafkaUser it has guardedUsers, who may
// do what they were granted; everybody else may do everything.
var secured sharedKafka

// guardedUsers each belong to one test.
var guardedUsers = []string{"bob", "carol", "dave", "relay"}

type sharedKafka struct {
	once  sync.Once
	kafka *servers.Kafka
	err   error
}

func (s *sharedKafka) get(t testing.TB) *servers.Kafka {
	t.Helper()
	s.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		defer cancel()
		login := "org.apache.kafka.common.security.plain.PlainLoginModule required user_" + servers.KafkaUser + `="` + servers.KafkaPassword + `"`
		for _, user := range guardedUsers {
			login += " user_" + user + `="` + guardedPassword(user) + `"`
		}
		s.kafka, s.err = servers.StartKafka(ctx, servers.KafkaOptions{Secure: true, Properties: map[string]string{
			"authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
			"super.users":           "User:ANONYMOUS;User:" + servers.KafkaUser + ";User:" + servers.KafkaClientName,
			"listener.name.sasl_ssl.plain.sasl.jaas.config": login + ";",
		}})
	})
	if s.err != nil {
		t.Fatal(s.err)
	}
	return s.kafka
}

func (s *sharedKafka) close(keepLogs bool) {
	if s.kafka == nil {
		return
	}
	if keepLogs {
		_ = s.kafka.KeepLogs(filepath.Join(servers.LogsDir(), "shared"))
	}
	_ = s.kafka.Close() // what it leaves, the next run removes
}

func guardedPassword(user string) string { return user + "-password" }
