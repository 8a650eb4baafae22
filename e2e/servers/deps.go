package servers

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"time"
)

// Deps gets what the demo and all tests but the Helm chart's need (for those see
// ChartDeps): it installs what the system lacks
// (as root, on Debian and its relatives; otherwise the error names the command
// to run) and downloads the rest into the cache. It may be called at any time
// and from several processes at once; what is there is left alone, and nothing
// is ever half there. Progress goes to out, a line each.
func Deps(ctx context.Context, out io.Writer) error {
	if err := ensurePackages(ctx, out); err != nil {
		return err
	}
	for _, version := range []string{OldestPostgresVersion, DefaultPostgresVersion} {
		if _, err := ensurePostgres(ctx, version, out); err != nil {
			return err
		}
	}
	if _, err := Python(ctx, out); err != nil {
		return err
	}
	if _, err := Prometheus(ctx, out); err != nil {
		return err
	}
	home, err := ensureKafka(ctx, out)
	if err != nil {
		return err
	}
	if err := ensureKafkaArchive(ctx, home, out); err != nil {
		// It only makes starts faster.
		progress(out, "Kafka will start more slowly, its class archive could not be made: %v", err)
	}
	return nil
}

// ensurePostgres downloads the version unless the cache has it, and returns
// the folder with bin, lib and share.
func ensurePostgres(ctx context.Context, version string, out io.Writer) (string, error) {
	return ensure(ctx, out, filepath.Join("postgres", version), "PostgreSQL "+version, func(dir string) error {
		return downloadPostgres(ctx, version, dir)
	})
}

// ensureKafka downloads Kafka unless the cache has it, and returns the folder
// with libs.
func ensureKafka(ctx context.Context, out io.Writer) (string, error) {
	return ensure(ctx, out, filepath.Join("kafka", KafkaVersion), "Kafka "+KafkaVersion, func(dir string) error {
		return downloadKafka(ctx, dir)
	})
}

// ensure is the folder named by path in the cache, downloaded first if it is not there.
func ensure(ctx context.Context, out io.Writer, path, what string, fill func(dir string) error) (string, error) {
	return ensureArtifact(ctx, out, artifact{path: path, what: what, verb: "downloading", lock: "lock", fill: fill})
}

// artifact is a folder in the cache.
type artifact struct {
	// path is in the cache, as is lock, the file that whoever fills it locks.
	path, lock string
	// what it is, what is done to get it, and what else to say about that, for
	// whoever waits.
	what, verb, note string
	// fill writes its content into a folder.
	fill func(dir string) error
}

// ensureArtifact is the artifact's folder, filled first if it is not there.
func ensureArtifact(ctx context.Context, out io.Writer, a artifact) (string, error) {
	cache, err := openCache()
	if err != nil {
		return "", err
	}
	target := filepath.Join(cache, a.path)
	if exists(target) {
		return target, nil
	}
	unlock, err := lockCache(ctx, filepath.Join(cache, a.lock), out)
	if err != nil {
		return "", err
	}
	defer unlock()
	if exists(target) {
		return target, nil
	}
	began := time.Now()
	progress(out, "%s %s into %s%s", a.verb, a.what, target, a.note)
	stop := remind(out, a.verb+" "+a.what)
	err = install(target, a.fill)
	stop()
	if err != nil {
		return "", err
	}
	progress(out, "got %s in %v", a.what, time.Since(began).Round(100*time.Millisecond))
	return target, nil
}

// remind says once a minute what still goes on, until the returned function is
// called, which waits for the last word.
func remind(out io.Writer, what string) (stop func()) {
	began := time.Now()
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(time.Minute)
		defer ticker.Stop()
		for {
			select {
			case <-done:
				return
			case <-ticker.C:
				progress(out, "still %s, for %v", what, time.Since(began).Round(time.Second))
			}
		}
	}()
	return func() {
		close(done)
		<-ended
	}
}

// ensureKafkaArchive makes the archive of Kafka's loaded classes for this
// Java, with which Kafka starts in half the time. It is made by a broker that
// does some work and stops.
func ensureKafkaArchive(ctx context.Context, home string, out io.Writer) error {
	archive, err := kafkaArchive(home)
	if err != nil || exists(archive) {
		return err
	}
	unlock, err := lockCache(ctx, filepath.Join(filepath.Dir(filepath.Dir(home)), "lock"), out)
	if err != nil {
		return err
	}
	defer unlock()
	if exists(archive) {
		return nil
	}
	began := time.Now()
	progress(out, "making Kafka's class archive %s, about 20 s", archive)
	partial := archive + ".partial"
	defer os.Remove(partial)
	k, err := startKafka(ctx, KafkaOptions{}, "-XX:ArchiveClassesAtExit="+partial)
	if err != nil {
		return err
	}
	err = k.CreateTopic(ctx, "warm", 1, nil)
	if err := errors.Join(err, k.stopWithin(5*time.Minute), k.Close()); err != nil {
		return err
	}
	if err := os.Rename(partial, archive); err != nil {
		return err
	}
	progress(out, "made Kafka's class archive in %v", time.Since(began).Round(100*time.Millisecond))
	return nil
}
