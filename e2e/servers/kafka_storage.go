package servers

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// What is in a formatted storage: whose it is, and the first records of the
// metadata, which a controller needs.
const (
	storageIdentity = "meta.properties"
	storageRecords  = "bootstrap.checkpoint"
)

// writeStorage makes the folder data, as Kafka's storage tool does for a node
// of that id: one with the first records for a controller, which know the user
// of a Secure Kafka.
func writeStorage(ctx context.Context, home, data string, id int, controller, secure bool) error {
	if err := os.MkdirAll(data, 0o755); err != nil {
		return fmt.Errorf("kafka's storage: %w", err)
	}
	var directory [16]byte
	_, _ = rand.Read(directory[:]) // never fails
	if err := writeProperties(filepath.Join(data, storageIdentity), map[string]string{
		"version": "1", "cluster.id": clusterID, "node.id": strconv.Itoa(id),
		"directory.id": base64.RawURLEncoding.EncodeToString(directory[:]),
	}); err != nil || !controller {
		return err
	}
	records, err := storageRecordsFor(ctx, home, secure)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(data, storageRecords), records, 0o644); err != nil {
		return fmt.Errorf("kafka's storage: %w", err)
	}
	return nil
}

// storageRecordsFor are the first records that the storage tool writes. They
// are the same each time, and the tool takes half as much processor time as a
// broker's start: they are kept beside Kafka.
func storageRecordsFor(ctx context.Context, home string, secure bool) ([]byte, error) {
	kept := filepath.Join(home, storageRecords)
	if secure {
		kept += "-" + KafkaUser + "-" + KafkaPassword
	}
	records, err := os.ReadFile(kept)
	if !errors.Is(err, os.ErrNotExist) {
		return records, err
	}
	dir, err := os.MkdirTemp(home, "format-")
	if err != nil {
		return nil, fmt.Errorf("formatting Kafka's storage: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }() // only space
	data, config := filepath.Join(dir, "data"), filepath.Join(dir, "server.properties")
	if err := writeProperties(config, map[string]string{
		"process.roles": "controller", "node.id": "1", "log.dirs": data,
		"controller.listener.names": "CONTROLLER", "listeners": "CONTROLLER://127.0.0.1:9", "controller.quorum.voters": "1@127.0.0.1:9",
	}); err != nil {
		return nil, err
	}
	arguments := []string{"format", "-t", clusterID, "-c", config}
	if secure {
		for _, mechanism := range []string{"SCRAM-SHA-256", "SCRAM-SHA-512"} {
			arguments = append(arguments, "--add-scram", fmt.Sprintf("%s=[name=%s,password=%s]", mechanism, KafkaUser, KafkaPassword))
		}
	}
	command, err := kafkaJava(home, dir, 128, nil, "kafka.tools.StorageTool", arguments...)
	if err != nil {
		return nil, err
	}
	limited, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if _, err := runTool(limited, command); err != nil {
		return nil, err
	}
	written := filepath.Join(data, storageRecords)
	if records, err = os.ReadFile(written); err != nil {
		return nil, fmt.Errorf("formatting Kafka's storage: %w", err)
	}
	// Whole or not at all; somebody else's are as good.
	if err := os.Rename(written, kept); err != nil {
		return nil, fmt.Errorf("keeping Kafka's formatted storage: %w", err)
	}
	return records, nil
}
