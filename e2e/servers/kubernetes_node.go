package servers

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
)

// node is the one Node. It has no kubelet: its port leads nowhere.
const node = `{
	"apiVersion": "v1", "kind": "Node",
	"metadata": {"name": "node-0", "labels": {"kubernetes.io/hostname": "node-0", "kubernetes.io/os": "linux"}},
	"status": {
		"allocatable": {"cpu": "64", "memory": "256Gi", "pods": "1000"},
		"capacity": {"cpu": "64", "memory": "256Gi", "pods": "1000"}
	}
}`

// kwokStages are what happens to nodes and pods, in kwok's module.
var kwokStages = []string{
	"node/fast/node-initialize.yaml",
	"node/heartbeat-with-lease/node-heartbeat-with-lease.yaml",
	"pod/fast/pod-ready.yaml",
	"pod/fast/pod-complete.yaml",
	"pod/fast/pod-delete.yaml",
}

func (k *Kubernetes) stages() string { return k.scratch.path("stages.yaml") }

// writeStages writes kwok's configuration.
func (k *Kubernetes) writeStages(ctx context.Context) error {
	module, err := GoModule(ctx, kwokModule, kwokVersion)
	if err != nil {
		return err
	}
	var documents []string
	for _, name := range kwokStages {
		content, err := os.ReadFile(filepath.Join(module, "kustomize", "stage", name))
		if err != nil {
			return fmt.Errorf("kwok %s: %w", kwokVersion, err)
		}
		documents = append(documents, string(content))
	}
	stages := strings.Join(documents, "\n---\n")
	// Not only Jobs' pods complete.
	stages, err = replaceOnce(stages, "'.metadata.ownerReferences.[].kind'", "'.spec.restartPolicy'")
	if err == nil {
		stages, err = replaceOnce(stages, "- 'Job'", "- 'Never'\n      - 'OnFailure'")
	}
	if err != nil {
		return fmt.Errorf("kwok %s, stage pod-complete: %w", kwokVersion, err)
	}
	return os.WriteFile(k.stages(), []byte(stages), 0o644)
}

func replaceOnce(text, old, replacement string) (string, error) {
	if n := strings.Count(text, old); n != 1 {
		return "", fmt.Errorf("expected %q once, found it %d times", old, n)
	}
	return strings.Replace(text, old, replacement, 1), nil
}

// startNode makes the Node and returns when kwok made it ready; the caller
// holds mu.
func (k *Kubernetes) startNode(ctx context.Context) error {
	if err := k.Call(ctx, http.MethodPost, "/api/v1/nodes", []byte(node), nil); err != nil {
		return fmt.Errorf("making the Node: %w", err)
	}
	// kwok is the last of the helpers.
	return k.await(ctx, k.helpers[len(k.helpers)-1], func(ctx context.Context) error {
		var node struct {
			Status struct {
				Conditions []struct{ Type, Status string }
			}
			Spec struct{ Taints []struct{ Key string } }
		}
		if err := k.Call(ctx, http.MethodGet, "/api/v1/nodes/node-0", nil, &node); err != nil {
			return err
		}
		// The controllers taint a Node while it is not ready.
		if len(node.Spec.Taints) > 0 {
			return fmt.Errorf("the Node has taints: %+v", node.Spec.Taints)
		}
		for _, condition := range node.Status.Conditions {
			if condition.Type == "Ready" && condition.Status == "True" {
				return nil
			}
		}
		return fmt.Errorf("the Node is not ready: %+v", node.Status.Conditions)
	})
}
