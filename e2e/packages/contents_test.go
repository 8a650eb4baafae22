package packages_test

import (
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// packaged is what both kinds of package have beside their own documentation,
// by path: mode, and whether it is a configuration that upgrades leave alone.
var packaged = map[string]string{
	"/etc/outbox-relay":                                "drwxr-x---",
	"/etc/outbox-relay/relay.env":                      "-rw-r----- configuration",
	"/etc/outbox-relay/relay.yaml":                     "-rw-r----- configuration",
	"/usr/bin/relay":                                   "-rwxr-xr-x",
	"/usr/lib/systemd/system/outbox-relay.service":     "-rw-r--r--",
	"/usr/lib/systemd/system/outbox-relay@.service":    "-rw-r--r--",
	"/usr/share/bash-completion/completions/relay":     "-rw-r--r--",
	"/usr/share/fish/vendor_completions.d/relay.fish":  "-rw-r--r--",
	"/usr/share/doc/outbox-relay/CHANGELOG.md":         "-rw-r--r--",
	"/usr/share/doc/outbox-relay/LICENSE":              "-rw-r--r--",
	"/usr/share/doc/outbox-relay/README.md":            "-rw-r--r--",
	"/usr/share/doc/outbox-relay/THIRD_PARTY_LICENSES": "-rw-r--r--",
	"/usr/share/doc/outbox-relay/config.example.yaml":  "-rw-r--r--",
}

// with returns what a kind of package has.
func with(paths ...string) map[string]string {
	all := maps.Clone(packaged)
	for _, path := range paths {
		all[path] = "-rw-r--r--"
	}
	return all
}

func compare(t *testing.T, kind string, found, want map[string]string) {
	t.Helper()
	for _, path := range slices.Sorted(maps.Keys(want)) {
		if found[path] != want[path] {
			t.Errorf("%s: %s is %q, want %q", kind, path, found[path], want[path])
		}
	}
	for _, path := range slices.Sorted(maps.Keys(found)) {
		if want[path] == "" {
			t.Errorf("%s: %s is unexpected", kind, path)
		}
	}
}

func TestDebHasItsFiles(t *testing.T) {
	d := openDist(t)
	needs(t, "dpkg-deb")
	for _, architecture := range []string{"amd64", "arm64"} {
		deb := d.linuxPackage(t, "deb", architecture)
		found := map[string]string{}
		line := regexp.MustCompile(`(?m)^(\S{10}) (\S+) +\d+ \S+ \S+ \.(/\S+)$`)
		for _, match := range line.FindAllStringSubmatch(output(t, "dpkg-deb", "-c", deb), -1) {
			mode, owner, path := match[1], match[2], strings.TrimSuffix(match[3], "/")
			if owner != "root/root" && owner != "0/0" {
				t.Errorf("%s belongs to %s", path, owner)
			}
			if mode[0] != 'd' || path == "/etc/outbox-relay" { // the folders of others
				found[path] = mode
			}
		}
		for conffile := range strings.FieldsSeq(output(t, "dpkg-deb", "--info", deb, "conffiles")) {
			found[conffile] += " configuration"
		}
		compare(t, "deb for "+architecture, found, with("/usr/share/doc/outbox-relay/copyright", "/usr/share/zsh/vendor-completions/_relay"))
		for field, want := range map[string]string{"Package": "outbox-relay", "Architecture": architecture, "Section": "net"} {
			if got := strings.TrimSpace(output(t, "dpkg-deb", "-f", deb, field)); got != want {
				t.Errorf("%s is %q, want %q", field, got, want)
			}
		}
	}
}

func TestRPMHasItsFiles(t *testing.T) {
	d := openDist(t)
	needs(t, "rpm")
	for architecture, name := range map[string]string{"amd64": "x86_64", "arm64": "aarch64"} {
		rpm := d.linuxPackage(t, "rpm", architecture)
		found := map[string]string{}
		query := output(t, "rpm", "-qp", "--qf", `[%{FILENAMES} %{FILEMODES:perms} %{FILEFLAGS:fflags}. %{FILEUSERNAME}:%{FILEGROUPNAME}\n]%{ARCH} %{LICENSE}`, rpm)
		lines := strings.Split(query, "\n")
		for _, line := range lines[:len(lines)-1] {
			fields := strings.Fields(line)
			if len(fields) != 4 || fields[3] != "root:root" {
				t.Fatalf("unexpected line %q", line)
			}
			found[fields[0]] = fields[1]
			if strings.Contains(fields[2], "c") && strings.Contains(fields[2], "n") {
				found[fields[0]] += " configuration"
			}
		}
		compare(t, "rpm for "+name, found, with("/usr/share/zsh/site-functions/_relay"))
		if last := lines[len(lines)-1]; last != name+" Apache-2.0" {
			t.Errorf("architecture and licence are %q", last)
		}
	}
}
