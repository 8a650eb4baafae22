package packages_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"

	"github.com/outboxrelay/relay/e2e/scenario"
)

// The file is read by the code that `docker compose config` reads it with, which
// knows its schema.
func TestComposeFile(t *testing.T) {
	options, err := cli.NewProjectOptions([]string{filepath.Join(root, "deploy/compose/compose.yaml")}, cli.WithProfiles([]string{"*"}))
	if err != nil {
		t.Fatal(err)
	}
	project, err := options.LoadProject(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	relays := 0
	for name, service := range project.Services {
		for _, port := range service.Ports {
			if port.HostIP != "127.0.0.1" {
				t.Errorf("%s: port %s is open to the network", name, port.Published)
			}
		}
		for other, dependency := range service.DependsOn {
			depended, there := project.Services[other]
			if !there {
				t.Errorf("%s depends on %s, which is not there", name, other)
			}
			if dependency.Condition == types.ServiceConditionHealthy && depended.HealthCheck == nil {
				t.Errorf("%s waits until %s is healthy, which nothing checks", name, other)
			}
		}
		if !strings.Contains(service.Image, "outbox-relay") {
			continue
		}
		relays++
		if !service.ReadOnly || !slices.Equal(service.CapDrop, []string{"ALL"}) {
			t.Errorf("%s runs with more than it needs", name)
		}
		loads(t, name, service)
	}
	if relays != 4 {
		t.Errorf("%d services of the relay's image, want 4", relays)
	}
}

// loads runs the relay's binary with the service's configuration and variables.
func loads(t *testing.T, name string, service types.ServiceConfig) {
	t.Helper()
	var environment []string
	for variable, value := range service.Environment {
		environment = append(environment, variable+"="+*value)
	}
	i := slices.IndexFunc(service.Volumes, func(v types.ServiceVolumeConfig) bool { return v.Target == "/etc/outbox-relay/relay.yaml" })
	if i < 0 {
		t.Errorf("%s has no configuration", name)
		return
	}
	if _, err := os.Stat(service.Volumes[i].Source); err != nil {
		t.Error(err)
	}
	result := scenario.Command(t, environment, "config", "print", "--config", service.Volumes[i].Source)
	if result.Code != 0 {
		t.Errorf("%s: %s", name, result)
	}
	for _, argument := range service.Command {
		if argument == "migrate" { // knows its flags
			if help := scenario.Command(t, environment, append(slices.Clone(service.Command), "--help")...); help.Code != 0 {
				t.Errorf("%s: relay %s: %s", name, strings.Join(service.Command, " "), help)
			}
		}
	}
}
