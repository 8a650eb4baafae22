package servers

import (
	"archive/zip"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
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
	jar, err := mavenCopy(ctx, postgresArtifact+platform+":"+version, jars)
	if err != nil {
		return err
	}
	archive := filepath.Join(jars, "postgres.txz")
	if err := extractPostgres(jar, archive); err != nil {
		return fmt.Errorf("unpacking %s: %w", jar, err)
	}
	if _, err := runTool(ctx, exec.Command("tar", "-xJf", archive, "-C", dir, "--no-same-owner")); err != nil {
		return err
	}
	return os.RemoveAll(jars)
}

// downloadDebezium fills dir with the connector's folder.
func downloadDebezium(ctx context.Context, dir string) error {
	folder := filepath.Join(dir, ".archive")
	archive, err := mavenCopy(ctx, debeziumArtifact, folder)
	if err != nil {
		return err
	}
	if err := checkSum(archive, debeziumChecksum); err != nil {
		return err
	}
	if _, err := runTool(ctx, exec.Command("tar", "-xzf", archive, "-C", dir, "--no-same-owner")); err != nil {
		return err
	}
	return os.RemoveAll(folder)
}

// checkSum refuses a file whose SHA-256 is another.
func checkSum(path, want string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, file); err != nil {
		return err
	}
	if got := hex.EncodeToString(hash.Sum(nil)); got != want {
		return fmt.Errorf("%s has the SHA-256 %s, not %s: it is not what was released; look at the mirror that it came from", path, got, want)
	}
	return nil
}

// mavenCopy downloads one artifact, group:name:version…, into an empty folder and
// returns its path there.
func mavenCopy(ctx context.Context, name, folder string) (string, error) {
	if err := maven(ctx, dependencyPlugin+":copy", "-Dartifact="+name, "-DoutputDirectory="+folder); err != nil {
		return "", err
	}
	paths, err := filepath.Glob(filepath.Join(folder, "*"))
	if err != nil {
		return "", err
	}
	if len(paths) != 1 {
		return "", fmt.Errorf("downloading %s: expected one file in %s, found %d", name, folder, len(paths))
	}
	return paths[0], nil
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
