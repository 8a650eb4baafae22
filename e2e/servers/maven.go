package servers

import (
	"archive/zip"
	"context"
	_ "embed"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// downloadLimit bounds one download; Maven itself waits half an hour for a
// dead connection.
const downloadLimit = 10 * time.Minute

// kafkaPOM names Kafka's jars; @VERSION@ stands for KafkaVersion.
//
//go:embed kafka.pom.xml
var kafkaPOM string

// downloadKafka fills dir with the folder libs.
func downloadKafka(ctx context.Context, dir string) error {
	pom := filepath.Join(dir, "pom.xml")
	if err := os.WriteFile(pom, []byte(strings.ReplaceAll(kafkaPOM, "@VERSION@", KafkaVersion)), 0o644); err != nil {
		return err
	}
	return maven(ctx, "-f", pom, dependencyPlugin+":copy-dependencies", "-DoutputDirectory="+filepath.Join(dir, "libs"))
}

// downloadPostgres fills dir with bin, lib and share.
func downloadPostgres(ctx context.Context, version, dir string) error {
	platform, ok := map[string]string{"amd64": "amd64", "arm64": "arm64v8"}[runtime.GOARCH]
	if !ok {
		return fmt.Errorf("no PostgreSQL to download for %s: set RELAY_TEST_POSTGRES_URL to a running one", runtime.GOARCH)
	}
	jars := filepath.Join(dir, ".jars")
	err := maven(ctx, dependencyPlugin+":copy", "-Dartifact="+postgresArtifact+platform+":"+version, "-DoutputDirectory="+jars)
	if err != nil {
		return err
	}
	paths, err := filepath.Glob(filepath.Join(jars, "*.jar"))
	if err != nil {
		return err
	}
	if len(paths) != 1 {
		return fmt.Errorf("downloading PostgreSQL %s: expected one jar in %s, found %d", version, jars, len(paths))
	}
	archive := filepath.Join(jars, "postgres.txz")
	if err := extractPostgres(paths[0], archive); err != nil {
		return fmt.Errorf("unpacking %s: %w", paths[0], err)
	}
	if _, err := runTool(ctx, exec.Command("tar", "-xJf", archive, "-C", dir, "--no-same-owner")); err != nil {
		return err
	}
	return os.RemoveAll(jars)
}

// extractPostgres copies the one compressed archive that the jar contains.
func extractPostgres(jar, target string) error {
	reader, err := zip.OpenReader(jar)
	if err != nil {
		return err
	}
	defer reader.Close()
	for _, entry := range reader.File {
		if filepath.Ext(entry.Name) != ".txz" {
			continue
		}
		source, err := entry.Open()
		if err != nil {
			return err
		}
		defer source.Close()
		file, err := os.Create(target)
		if err != nil {
			return err
		}
		if _, err := io.Copy(file, source); err != nil {
			_ = file.Close()
			return err
		}
		return file.Close()
	}
	return fmt.Errorf("it contains no .txz file")
}

// maven runs Maven. One failed download in a row of many is common enough to
// be worth a second attempt.
func maven(ctx context.Context, args ...string) error {
	program, err := exec.LookPath("mvn")
	if err != nil {
		return missingPackages([]string{"maven"})
	}
	cache, err := openCache()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, downloadLimit)
	defer cancel()
	// A repository of its own, as the user may have no home.
	args = append([]string{"-q", "-B", "-Dstyle.color=never", "-Dmaven.repo.local=" + filepath.Join(cache, "maven")}, args...)
	for attempt := 1; ; attempt++ {
		command := exec.Command(program, args...)
		command.Dir = os.TempDir()
		_, err := runTool(ctx, command)
		if err == nil || attempt == 2 || ctx.Err() != nil {
			if err != nil {
				err = fmt.Errorf("downloading with Maven: %w\nIs the network reachable, and any mirror it needs set in ~/.m2/settings.xml?", err)
			}
			return err
		}
	}
}
