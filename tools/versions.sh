# The linters' versions. govulncheck's newest release that all of its
# requirements can be downloaded for.
STATICCHECK_VERSION=v0.8.2 # is 2026.2.2
GOLANGCI_LINT_VERSION=v2.15.0
GOVULNCHECK_VERSION=v1.8.0
# The newest release that is built by the Go of go.mod, and all of whose
# requirements can be downloaded.
GORELEASER_VERSION=v2.16.0
