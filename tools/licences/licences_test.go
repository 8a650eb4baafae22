package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const root = "../.."

// The list is shipped with each binary, so it has to be what they are built from.
func TestListIsUpToDate(t *testing.T) {
	modules, err := collect(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	if err := checkList(root, modules); err != nil {
		t.Error(err)
	}
	licences := map[string][]string{}
	for _, m := range modules {
		licences[m.Path] = m.Licences
	}
	for path, want := range map[string]string{
		"github.com/jackc/pgx/v5": "MIT", "github.com/segmentio/kafka-go": "MIT", "github.com/rabbitmq/amqp091-go": "BSD-2-Clause",
		"github.com/spf13/cobra": "Apache-2.0", standardLibrary: "BSD-3-Clause",
	} {
		if !slices.Contains(licences[path], want) {
			t.Errorf("%s: found %q, want %s", path, licences[path], want)
		}
	}
}

func TestWhatIsNotAcceptedIsRefused(t *testing.T) {
	apache, err := os.ReadFile(filepath.Join(root, "LICENSE"))
	if err != nil {
		t.Fatal(err)
	}
	const gpl = `This program is free software: you can redistribute it and/or modify
it under the terms of the GNU General Public License as published by
the Free Software Foundation, either version 3 of the License, or
(at your option) any later version.

This program is distributed in the hope that it will be useful,
but WITHOUT ANY WARRANTY; without even the implied warranty of
MERCHANTABILITY or FITNESS FOR A PARTICULAR PURPOSE.  See the
GNU General Public License for more details.

You should have received a copy of the GNU General Public License
along with this program.  If not, see <https://www.gnu.org/licenses/>.`
	for _, test := range []struct {
		name  string
		files map[string]string
		want  string
	}{
		{"accepted", map[string]string{"LICENSE": string(apache)}, ""},
		{"none", map[string]string{"README": "free"}, "no licence found"},
		{"only a notice", map[string]string{"NOTICE": "made by somebody"}, "no licence found"},
		{"GPL", map[string]string{"COPYING": gpl}, "is under GPL-3.0"},
		{"a copied part", map[string]string{"LICENSE": string(apache), "internal/part/LICENSE.txt": gpl}, "internal/part/LICENSE.txt is under GPL-3.0"},
		{"unknown", map[string]string{"LICENSE": "All rights reserved. Ask the author."}, "no licence that is known"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			leaf := filepath.Join(dir, "internal/part")
			if err := os.MkdirAll(leaf, 0o755); err != nil {
				t.Fatal(err)
			}
			for name, text := range test.files {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			m := module{Path: "example.com/m", Texts: map[string]string{}}
			if err := m.read(dir, leaf); err != nil {
				t.Fatal(err)
			}
			err := m.judge()
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
	}
}

func TestBillOfMaterialsOfABinary(t *testing.T) {
	dir := t.TempDir()
	binary, sbom := filepath.Join(dir, "relay"), filepath.Join(dir, "sbom.json")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "./cmd/relay")
	build.Dir = root
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	if err := run(t.Context(), []string{"--root", root, "--binary", binary, "--release", "1.2.3", "--sbom", sbom}); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(sbom)
	if err != nil {
		t.Fatal(err)
	}
	type component struct {
		Name, Version, PURL string
		Licenses            []struct{ License struct{ ID string } }
	}
	var document struct {
		BOMFormat, SpecVersion string
		Metadata               struct{ Component component }
		Components             []component
	}
	if err := json.Unmarshal(content, &document); err != nil {
		t.Fatal(err)
	}
	if document.BOMFormat != "CycloneDX" || document.SpecVersion != "1.6" {
		t.Errorf("it is %s %s", document.BOMFormat, document.SpecVersion)
	}
	if main := document.Metadata.Component; main.Name != "github.com/outboxrelay/relay" || main.Version != "1.2.3" {
		t.Errorf("it is of %s %s", main.Name, main.Version)
	}
	i := slices.IndexFunc(document.Components, func(c component) bool { return c.Name == "github.com/jackc/pgx/v5" })
	if i < 0 {
		t.Fatal("pgx is not listed")
	}
	pgx := document.Components[i]
	if !strings.HasPrefix(pgx.PURL, "pkg:golang/github.com/jackc/pgx/v5@v5.") || len(pgx.Licenses) != 1 || pgx.Licenses[0].License.ID != "MIT" {
		t.Errorf("pgx: %+v", pgx)
	}
}
