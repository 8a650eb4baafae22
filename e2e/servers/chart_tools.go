package servers

import (
	"context"
	"os"
)

// Versions of what the Helm chart is tested and documented with.
const (
	helmUnittestModule  = "github.com/helm-unittest/helm-unittest"
	helmUnittestVersion = "v1.1.2"
	helmDocsVersion     = "v1.14.2"
)

// HelmUnittest builds helm-unittest unless the cache has it, and returns the
// program.
func HelmUnittest(ctx context.Context) (string, error) {
	tool := goTool{pkg: helmUnittestModule + "/cmd/helm-unittest", version: helmUnittestVersion, prepare: replaceJSONPath}
	return tool.ensure(ctx, os.Stderr)
}

// replaceJSONPath replaces what helm-unittest's own go.mod replaces: its asserts
// need a newer JSONPath than the original has.
func replaceJSONPath(ctx context.Context, dir string) error {
	_, err := goCommand(ctx, dir, "mod", "edit", "-replace",
		"github.com/vmware-labs/yaml-jsonpath@v0.3.2=github.com/helm-unittest/yaml-jsonpath@v0.4.0")
	return err
}

// HelmDocs builds helm-docs, which writes a chart's README.md, unless the cache
// has it, and returns the program.
func HelmDocs(ctx context.Context) (string, error) {
	return GoTool(ctx, "github.com/norwoodj/helm-docs/cmd/helm-docs", helmDocsVersion)
}
