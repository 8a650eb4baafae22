package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"reflect"
)

// TestSecretsOfTheContract fails when a secret loses its twin, or another key
// becomes a secret by its name.
func TestSecretsOfTheContract(t *testing.T) {
	config := parseGood(t, "sinks: {a: {kafka: {brokers: [a:1]}}, b: {rabbitmq: {url: 'amqp://h/'}}}\nroutes: [{sink: a, match: {topic: x}}, {sink: b}]")
	var got []string
	eachSecret("", reflect.ValueOf(config), func(path string, _, _ reflect.Value) { got = append(got, path) })
	want := []string{"database.direct_url", "database.password", "database.url", "http.token", "sinks.a.kafka.sasl.password", "sinks.b.rabbitmq.url"}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func secretFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestSecretsFromFiles(t *testing.T) {
	url, direct, password := secretFile(t, "postgres://h/d\n"), secretFile(t, "host=h"), secretFile(t, canary+"\r\n")
	amqp := secretFile(t, "amqp://u:"+canary+"@h/\n")
	config, err := Parse("relay.yaml", []byte(`
database: {url_file: "`+url+`", direct_url_file: '${DIRECT}', password_file: "`+password+`", password: ""}
sinks:
  a: {kafka: {brokers: [a:1], sasl: {mechanism: plain, username: u, password_file: "`+password+`"}}}
  b: {rabbitmq: {url_file: "`+amqp+`"}}
routes: [{sink: a, match: {topic: x}}, {sink: b}]
`), environment{"DIRECT": direct}.lookup)
	if err != nil {
		t.Fatal(err)
	}
	d, sasl, rabbit := config.Database, config.Sinks["a"].Kafka.SASL, config.Sinks["b"].RabbitMQ
	if d.URL != "postgres://h/d" || d.DirectURL != "host=h" || d.Password != canary || sasl.Password != canary || rabbit.URL != "amqp://u:"+canary+"@h/" {
		t.Errorf("%+v %+v %+v", d, sasl, rabbit)
	}
	if d.URLFile != "" || d.DirectURLFile != "" || d.PasswordFile != "" || sasl.PasswordFile != "" || rabbit.URLFile != "" {
		t.Errorf("a file is left to be read again: %+v %+v %+v", d, sasl, rabbit)
	}
	// What is printed names the files, hides what is in them, and loads again.
	var out strings.Builder
	if err := config.Print(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"url_file: " + url, "direct_url_file: " + direct, "password_file: " + password, "url_file: " + amqp, `password: ""`} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%s is not printed:\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), canary) {
		t.Errorf("a secret is printed:\n%s", out.String())
	}
	again, err := Parse("printed.yaml", []byte(out.String()), environment{}.lookup)
	if err == nil {
		again.namesInbox = config.namesInbox // every section is printed
		again.table = config.table           // compiled regular expressions do not compare
	}
	if err != nil || !reflect.DeepEqual(again, config) {
		t.Errorf("%v\n%+v\n%+v", err, again, config)
	}
}

func TestSecretFileErrors(t *testing.T) {
	for content, want := range map[string]string{
		"":                         "is empty",
		"\n":                       "is empty",
		"a\x00b":                   "has a NUL byte",
		strings.Repeat("x", 1<<17): "is larger than 65536 bytes",
	} {
		path := secretFile(t, content)
		_, err := Parse("relay.yaml", []byte("database:\n  password_file: "+path+"\n"+minimal), environment{}.lookup)
		if err == nil || !strings.HasPrefix(err.Error(), "relay.yaml:2: database.password_file: "+path+": "+want) {
			t.Errorf("%.10q: %v", content, err)
		}
	}
	_, err := Parse("relay.yaml", []byte("database:\n  password_file: /\n"+minimal), environment{}.lookup)
	if err == nil || !strings.Contains(err.Error(), "is a directory") {
		t.Error(err)
	}
}

func TestHide(t *testing.T) {
	for _, test := range []struct{ key, secret, want string }{
		{"password", "", ""},
		{"password", "x", "***"},
		{"password", "postgres://u:p@h", "***"},
		{"url", "", ""},
		{"url", "postgres://h/d", "postgres://h/d"},
		{"url", "postgres://u@h:5432/d?sslmode=require", "postgres://u@h:5432/d?sslmode=require"},
		{"url", "postgres://u:p@h/d", "postgres://u:***@h/d"},
		{"direct_url", "postgresql://u:p%40q@h1:1,h2:2/d?a=b", "postgresql://u:***@h1:1,h2:2/d?a=b"},
		{"url", "postgres://u:@h/d", "postgres://u:***@h/d"},
		{"url", "postgres://h/d?password=p&user=u&sslpassword=q", "postgres://h/d?password=***&user=u&sslpassword=***"},
		{"url", "postgres://h/d?pass%77ord=p", "postgres://h/d?pass%77ord=***"},
		{"url", "postgres://u:p?q@h/d?password=r", "postgres://u:***@h/d?password=***"},
		{"url", "postgres://u:p@q@h/d", "postgres://u:***@h/d"},
		{"url", "postgres://u:p/q@h/d", "postgres://u:***@h/d"},
		{"url", "postgres://[::1]:5432/d", "postgres://[::1]:5432/d"},
		{"url", "postgres://", "postgres://"},
		{"url", "host=h password=p user=u", "host=h password=*** user=u"},
		{"url", "host=h password='p q\\' r' user = 'u v'", "host=h password=*** user='u v'"},
		{"url", `password=a\ b`, `password=***`},
		{"url", `PASSWORD=a`, `PASSWORD=***`},
		{"url", "password=''", "password=***"},
		{"url", "password= host=h", "password=***"}, // as pgx reads it: the password is "host=h"
		{"url", "nonsense", "***"},
		{"url", "a b=c", "***"},
		{"url", "amqp://guest:guest@localhost:5672/", "amqp://guest:***@localhost:5672/"},
		{"url", "amqps://u:p%2Fq@h/%2Fvhost?heartbeat=5", "amqps://u:***@h/%2Fvhost?heartbeat=5"},
		{"url", "amqp://h/", "amqp://h/"},
	} {
		if got := hide(test.key, test.secret); got != test.want {
			t.Errorf("%s %s: got %s, want %s", test.key, test.secret, got, test.want)
		}
	}
}

func TestCensor(t *testing.T) {
	d := &document{expanded: map[string]expansion{
		"a.port":  {[]string{"P"}, "0"},
		"a.hosts": {[]string{"H"}, "db.example:9092"},
		"b":       {[]string{"B"}, "other"},
	}}
	secrets := map[string]string{"a.url": "amqp://u:p%40w@h", "c": "zzz", "a.password": "a", "a.other": "longer"}
	for message, want := range map[string]string{
		"0 is not between 1 and 10":  "*** is not between 1 and 10",
		`"db.example" has no port`:   `"***" has no port`,
		`"db.example:9092" is wrong`: "the value of ${H} is wrong",
		"the password p@w is bad":    "the password *** is bad",
		"the password p%40w is bad":  "the password *** is bad",
		"amqp://u:p%40w@h is bad":    "*** is bad",
		"another zzz":                "another zzz",
	} {
		if got := d.censor("a", message, secrets); got != want {
			t.Errorf("%q became %q, want %q", message, got, want)
		}
	}
}
