package chart_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/outboxrelay/relay/e2e/scenario"
)

// secretFiles writes what the examples' secrets hold into a folder, below the
// names that the chart mounts them by.
func secretFiles(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	for name, content := range map[string][]byte{
		"main-user/password":       []byte("canary"),
		"main-user/kafka-password": []byte("canary"),
		"main-ca/ca.crt":           pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate}),
		"main-user/user.crt":       pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate}),
		"main-user/user.key":       pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encoded}),
	} {
		path := filepath.Join(folder, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return folder
}

// The configuration that each example renders is one that the relay takes, and
// one that the schema lets through and the relay does not is refused by the
// init step with the relay's own message.
func TestRelayTakesTheConfigurationOfEachExample(t *testing.T) {
	t.Parallel()
	secrets := secretFiles(t)
	check := func(flags ...string) (string, error) {
		t.Helper()
		var configMap struct{ Data map[string]string }
		manifest := render(t, append([]string{"--show-only", "templates/configmap.yaml"}, flags...)...)
		if err := yaml.Unmarshal([]byte(manifest), &configMap); err != nil {
			t.Fatal(err)
		}
		// A container has the secrets below this folder; here it is another.
		configuration := strings.ReplaceAll(configMap.Data["relay.yaml"], "/etc/outbox-relay", secrets)
		file := filepath.Join(t.TempDir(), "relay.yaml")
		if err := os.WriteFile(file, []byte(configuration), 0o600); err != nil {
			t.Fatal(err)
		}
		command := exec.CommandContext(t.Context(), os.Getenv(scenario.BinaryVariable), "check", "--offline")
		command.Env = []string{
			"RELAY_CONFIG=" + file, "DATABASE_URL=postgres://relay:canary@db/orders", "DATABASE_DIRECT_URL=postgres://relay:canary@db/orders",
			"SINK_MAIN_URL=amqp://relay:canary@rabbit/", "SINK_MAIL_URL=amqps://relay:canary@rabbit/", "SINK_MAIN_USERNAME=relay",
		}
		output, err := command.CombinedOutput()
		if strings.Contains(string(output), "canary") {
			t.Errorf("%v: a secret is shown: %s", flags, output)
		}
		return string(output), err
	}
	for _, file := range examples(t) {
		if output, err := check("--values", file); err != nil || !strings.Contains(output, "is valid") {
			t.Errorf("%s: %v: %s", file, err, output)
		}
	}
	output, err := check("--values", examples(t)[0], "--set", "config.outbox.workers=8")
	if err == nil || !strings.Contains(output, "database.max_connections: 8 is too few for 8 workers") {
		t.Errorf("too few connections: %v: %s", err, output)
	}
}
