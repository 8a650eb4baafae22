# The linters' versions. govulncheck's newest release that all of its
# requirements can be downloaded for.
STATICCHECK_VERSION=v0.8.2 # is 2026.2.2
GOLANGCI_LINT_VERSION=v2.15.0
GOVULNCHECK_VERSION=v1.8.0
