package main

import (
	"debug/buildinfo"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/CycloneDX/cyclonedx-go"
)

// writeSBOM writes what the binary of the release was built from, as Go recorded
// it there: the same binary gives the same bytes.
func writeSBOM(binary, release, path string, modules []module) (err error) {
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		return fmt.Errorf("%s: %w", binary, err)
	}
	licences := map[string][]string{}
	for _, m := range modules {
		licences[m.Path] = m.Licences
	}
	bom := cyclonedx.NewBOM()
	bom.Metadata = &cyclonedx.Metadata{Component: &cyclonedx.Component{
		BOMRef: packageURL(info.Main.Path, release), Type: cyclonedx.ComponentTypeApplication,
		Name: info.Main.Path, Version: release, PackageURL: packageURL(info.Main.Path, release),
		Licenses: choices("Apache-2.0"),
	}}
	golang := strings.TrimPrefix(info.GoVersion, "go")
	components := []cyclonedx.Component{{
		BOMRef: packageURL("std", golang), Type: cyclonedx.ComponentTypeLibrary, Name: "std", Version: golang,
		PackageURL: packageURL("std", golang), Licenses: choices(licences[standardLibrary]...),
	}}
	for _, dependency := range info.Deps {
		if dependency.Replace != nil {
			dependency = dependency.Replace
		}
		found := licences[dependency.Path]
		if len(found) == 0 {
			return fmt.Errorf("%s is built from %s, whose licence was not looked for: it is older than the source", binary, dependency.Path)
		}
		reference := packageURL(dependency.Path, dependency.Version)
		components = append(components, cyclonedx.Component{
			BOMRef: reference, Type: cyclonedx.ComponentTypeLibrary, Name: dependency.Path, Version: dependency.Version,
			PackageURL: reference, Licenses: choices(found...),
			Properties: &[]cyclonedx.Property{{Name: "golang:sum", Value: dependency.Sum}},
		})
	}
	bom.Components = &components
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	return cyclonedx.NewBOMEncoder(file, cyclonedx.BOMFileFormatJSON).SetPretty(true).EncodeVersion(bom, cyclonedx.SpecVersion1_6)
}

func packageURL(path, version string) string { return "pkg:golang/" + path + "@" + version }

func choices(identifiers ...string) *cyclonedx.Licenses {
	licences := cyclonedx.Licenses{}
	for _, identifier := range identifiers {
		licences = append(licences, cyclonedx.LicenseChoice{License: &cyclonedx.License{ID: identifier}})
	}
	return &licences
}
