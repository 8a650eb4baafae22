package packages_test

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"crypto/sha256"
	"debug/buildinfo"
	"debug/elf"
	"debug/macho"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestChecksums(t *testing.T) {
	d := openDist(t)
	file, err := os.Open(d.path(d.the("Checksum", "", "")))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	sums := map[string]string{}
	for lines := bufio.NewScanner(file); lines.Scan(); {
		sum, name, ok := strings.Cut(lines.Text(), "  ")
		if !ok {
			t.Fatalf("no line of sha256sum: %q", lines.Text())
		}
		sums[name] = sum
	}
	for _, kind := range []string{"Archive", "Linux Package", "SBOM"} {
		found := d.all(kind)
		if len(found) != 4 { // two systems, or two formats, of two architectures
			t.Errorf("%d of type %s, want 4", len(found), kind)
		}
		for _, a := range found {
			content, err := os.ReadFile(d.path(a))
			if err != nil {
				t.Fatal(err)
			}
			if sum := sha256.Sum256(content); sums[a.Name] != hex.EncodeToString(sum[:]) {
				t.Errorf("%s: its checksum is %x, listed is %q", a.Name, sum, sums[a.Name])
			}
		}
	}
}

func TestBinariesSayWhatTheyAre(t *testing.T) {
	d := openDist(t)
	if len(d.Commit) != 40 {
		t.Fatalf("goreleaser knows no commit: %q", d.Commit)
	}
	var told struct{ Version, Commit string }
	if err := json.Unmarshal([]byte(output(t, d.path(d.the("Binary", "linux", "amd64")), "version", "--output", "json")), &told); err != nil {
		t.Fatal(err)
	}
	if told.Version != d.Version || told.Commit != d.Commit {
		t.Errorf("it says version %q of commit %q, want %q of %q", told.Version, told.Commit, d.Version, d.Commit)
	}
	for architecture, machine := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		file, err := elf.Open(d.path(d.the("Binary", "linux", architecture)))
		if err != nil {
			t.Error(err)
			continue
		}
		if file.Machine != machine {
			t.Errorf("linux %s: made for %s", architecture, file.Machine)
		}
		libraries, err := file.ImportedLibraries()
		interpreted := slices.ContainsFunc(file.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
		if err != nil || len(libraries) > 0 || interpreted {
			t.Errorf("linux %s: not static: libraries %v, %v", architecture, libraries, err)
		}
		_ = file.Close()
	}
	for architecture, cpu := range map[string]macho.Cpu{"amd64": macho.CpuAmd64, "arm64": macho.CpuArm64} {
		file, err := macho.Open(d.path(d.the("Binary", "darwin", architecture)))
		if err != nil {
			t.Error(err)
			continue
		}
		if file.Cpu != cpu {
			t.Errorf("darwin %s: made for %s", architecture, file.Cpu)
		}
		_ = file.Close()
	}
}

func TestArchivesAreComplete(t *testing.T) {
	d := openDist(t)
	for _, a := range d.all("Archive") {
		var files []string
		for name, header := range archived(t, d.path(a)) {
			if header.Uid != 0 || header.Gid != 0 {
				t.Errorf("%s: %s belongs to %d:%d", a.Name, name, header.Uid, header.Gid)
			}
			executable := header.Mode&0o111 != 0
			if executable != (name == "relay") {
				t.Errorf("%s: %s has the mode %o", a.Name, name, header.Mode)
			}
			files = append(files, name)
		}
		slices.Sort(files)
		want := []string{
			"CHANGELOG.md", "LICENSE", "README.md", "THIRD_PARTY_LICENSES", "completions/_relay", "completions/relay.bash", "completions/relay.fish",
			"config.example.yaml", "deploy/systemd/outbox-relay.service", "deploy/systemd/outbox-relay@.service", "relay",
		}
		if !slices.Equal(files, want) {
			t.Errorf("%s has\n%q, want\n%q", a.Name, files, want)
		}
	}
}

// archived returns the files of a tar.gz by their names below its one folder.
func archived(t *testing.T, archive string) map[string]*tar.Header {
	t.Helper()
	file, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	unzipped, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]*tar.Header{}
	folder := strings.TrimSuffix(filepath.Base(archive), ".tar.gz")
	for reader := tar.NewReader(unzipped); ; {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if header.Typeflag == tar.TypeDir {
			continue
		}
		below, ok := strings.CutPrefix(path.Clean(header.Name), folder+"/")
		if !ok {
			t.Errorf("%s: %s is not in the folder %s", filepath.Base(archive), header.Name, folder)
		}
		files[below] = header
	}
}

func TestBillsOfMaterials(t *testing.T) {
	d := openDist(t)
	for _, a := range d.all("Binary") {
		info, err := buildinfo.ReadFile(d.path(a))
		if err != nil {
			t.Fatal(err)
		}
		name := "outbox-relay_" + d.Version + "_" + a.Goos + "_" + a.Goarch + ".cdx.json"
		content, err := os.ReadFile(filepath.Join(d.folder, name))
		if err != nil {
			t.Error(err)
			continue
		}
		var bom struct {
			Metadata   struct{ Component struct{ Version string } }
			Components []struct{ PURL string }
		}
		if err := json.Unmarshal(content, &bom); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if bom.Metadata.Component.Version != d.Version {
			t.Errorf("%s is of version %q", name, bom.Metadata.Component.Version)
		}
		listed := map[string]bool{}
		for _, component := range bom.Components {
			listed[component.PURL] = true
		}
		pgx := false
		for _, dependency := range info.Deps {
			pgx = pgx || dependency.Path == "github.com/jackc/pgx/v5"
			if want := "pkg:golang/" + dependency.Path + "@" + dependency.Version; !listed[want] {
				t.Errorf("%s does not list %s", name, want)
			}
		}
		if !pgx {
			t.Errorf("%s: Go recorded no dependency on pgx", a.Name)
		}
	}
}
