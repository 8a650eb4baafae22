package main

import (
	"io"
	"log/slog"
	"os"

	"github.com/outboxrelay/relay/internal/config"
)

// newLogger returns the logger that the configuration asks for.
func newLogger(c config.Log, w *os.File) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		level = slog.LevelInfo // the configuration was validated before
	}
	return slog.New(newHandler(c.Format, isTerminal(w), w, level))
}

func newHandler(format string, terminal bool, w io.Writer, level slog.Level) slog.Handler {
	settings := &slog.HandlerOptions{Level: level}
	if format == "text" || (format == "auto" && terminal) {
		return slog.NewTextHandler(w, settings)
	}
	return slog.NewJSONHandler(w, settings)
}

func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
