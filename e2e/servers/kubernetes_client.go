package servers

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
)

// KubernetesError is what the API says when it refuses.
type KubernetesError struct {
	// Code is HTTP's.
	Code int
	// Reason is one word, such as NotFound, AlreadyExists, Conflict, Invalid.
	Reason string
	// Message names the object and what is wrong with it.
	Message string
}

// Error returns the API's own message.
func (e *KubernetesError) Error() string {
	return fmt.Sprintf("the Kubernetes API answers %d %s: %s", e.Code, e.Reason, e.Message)
}

// KubernetesAnswer is what the API answers to a request that it accepts.
type KubernetesAnswer struct {
	// Warnings are the headers of that name, as kubectl and helm print them.
	Warnings []string
	// Body is JSON.
	Body []byte
}

func newKubernetesClient() *http.Client {
	return &http.Client{Transport: &http.Transport{
		// The API server made its certificate by itself, on this machine.
		TLSClientConfig:     &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // as said
		MaxIdleConnsPerHost: 8,
		ForceAttemptHTTP2:   true,
	}}
}

// Call asks the API and decodes its answer into result, unless that is nil. A
// refusal is a *KubernetesError.
func (k *Kubernetes) Call(ctx context.Context, method, path string, body []byte, result any) error {
	answer, err := k.Send(ctx, method, path, "application/json", body)
	if err != nil || result == nil {
		return err
	}
	if err := json.Unmarshal(answer.Body, result); err != nil {
		return fmt.Errorf("%s %s: decoding the answer: %w", method, path, err)
	}
	return nil
}

// Send asks the API with a body of any type that it takes, such as
// application/apply-patch+yaml.
func (k *Kubernetes) Send(ctx context.Context, method, path, contentType string, body []byte) (KubernetesAnswer, error) {
	request, err := http.NewRequestWithContext(ctx, method, k.URL()+path, bytes.NewReader(body))
	if err != nil {
		return KubernetesAnswer{}, err
	}
	request.Header.Set("Authorization", "Bearer "+k.token)
	request.Header.Set("Accept", "application/json")
	request.Header.Set("Content-Type", contentType)
	response, err := k.client.Do(request)
	if err != nil {
		return KubernetesAnswer{}, err
	}
	defer response.Body.Close()
	answer := KubernetesAnswer{Warnings: response.Header.Values("Warning")}
	if answer.Body, err = io.ReadAll(response.Body); err != nil {
		return answer, fmt.Errorf("%s %s: %w", method, path, err)
	}
	if response.StatusCode/100 == 2 {
		return answer, nil
	}
	refusal := &KubernetesError{Code: response.StatusCode, Message: string(answer.Body)}
	var status struct{ Reason, Message string }
	if json.Unmarshal(answer.Body, &status) == nil && status.Message != "" {
		refusal.Reason, refusal.Message = status.Reason, status.Message
	}
	return answer, refusal
}

// ready asks the API server whether it and what it needs work.
func (k *Kubernetes) ready(ctx context.Context) error {
	_, err := k.Send(ctx, http.MethodGet, "/readyz", "", nil)
	return err
}
