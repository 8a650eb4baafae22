package packages_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// exposure is what `systemd-analyze security` may find at most, in tenths of its
// scale: the network and the host's files are left, which a relay needs.
const exposure = "15"

func TestUnitsAreHardened(t *testing.T) {
	needs(t, "systemd-analyze")
	for _, unit := range []string{"outbox-relay.service", "outbox-relay@.service"} {
		path, err := filepath.Abs(filepath.Join(root, "deploy/systemd", unit))
		if err != nil {
			t.Fatal(err)
		}
		if text, code := try(t, "systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold="+exposure, path); code != 0 {
			t.Errorf("%s is exposed:\n%s", unit, text)
		}
	}
}

// The two units differ in the relay that they are of, and in nothing else.
func TestTemplateIsTheUnitOfSeveralRelays(t *testing.T) {
	settings := func(unit string, replacer *strings.Replacer) (lines []string) {
		content, err := os.ReadFile(filepath.Join(root, "deploy/systemd", unit))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(content)) {
			if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
				lines = append(lines, replacer.Replace(line))
			}
		}
		return lines
	}
	one := settings("outbox-relay.service", strings.NewReplacer())
	several := settings("outbox-relay@.service", strings.NewReplacer("/%i.", "/relay.", " (%i)", ""))
	if strings.Join(one, "\n") != strings.Join(several, "\n") {
		t.Errorf("outbox-relay.service:\n%s\n\noutbox-relay@.service:\n%s", strings.Join(one, "\n"), strings.Join(several, "\n"))
	}
	if len(one) < 30 {
		t.Errorf("only %d settings", len(one))
	}
}
