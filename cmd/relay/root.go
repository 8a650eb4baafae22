package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/outboxrelay/relay/internal/config"
)

// defaultConfig is read where neither --config nor RELAY_CONFIG names a file.
const defaultConfig = "relay.yaml"

// options are the flags that all commands share.
type options struct {
	config string
}

func newRoot() *cobra.Command {
	o := &options{}
	root := &cobra.Command{
		Use:   "relay",
		Short: "Publish the rows of a transactional outbox to Kafka or RabbitMQ",
		Long: `Outbox Relay publishes the rows of an outbox table in PostgreSQL to Kafka or
RabbitMQ: every committed row at least once, in order by key, and nothing that
was rolled back.`,
		Example: `  relay migrate --config relay.yaml   # create the outbox table
  relay check --config relay.yaml     # is everything there?
  relay run --config relay.yaml       # relay until SIGTERM`,
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	file := os.Getenv("RELAY_CONFIG")
	if file == "" {
		file = defaultConfig
	}
	root.PersistentFlags().StringVar(&o.config, "config", file, "configuration file ($RELAY_CONFIG)")
	root.AddCommand(
		newRun(o), newMigrate(o), newCheck(o), newStatus(o), newParked(o), newDead(o), newReplay(o), newPrune(o),
		newConfig(o), newHealthcheck(o), newVersion(),
	)
	return root
}

func (o *options) load() (*config.Config, error) {
	return config.Load(o.config, os.LookupEnv)
}

// The values of --output.
const (
	outputText = "text"
	outputJSON = "json"
)

// output is the flag --output.
type output string

func (o *output) add(command *cobra.Command) {
	*o = outputText
	command.Flags().Var(o, "output", "text or json")
}

// String implements pflag.Value.
func (o *output) String() string { return string(*o) }

// Set implements pflag.Value.
func (o *output) Set(value string) error {
	if value != outputText && value != outputJSON {
		return fmt.Errorf("must be text or json")
	}
	*o = output(value)
	return nil
}

// Type implements pflag.Value.
func (o *output) Type() string { return "format" }

func writeJSON(w io.Writer, document any) error {
	text, err := marshal(document, "")
	if err == nil {
		_, err = fmt.Fprintln(w, text)
	}
	return failed(err)
}
