package servers

import (
	"context"
	"errors"
	"fmt"
	"image"
	"image/png"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

// chromiumNames are what distributions call the browser.
var chromiumNames = []string{"chromium", "chromium-browser", "google-chrome"}

// Chromium returns the path of a browser for screenshots, which it installs as
// root where there is apt-get. Few need it, so it is not among Deps.
func Chromium(ctx context.Context, out io.Writer) (string, error) {
	if program := findChromium(); program != "" {
		return program, nil
	}
	if os.Geteuid() != 0 || !inPath("apt-get") {
		return "", errors.New("this system has no Chromium; install it with\n\tsudo apt-get install -y --no-install-recommends chromium")
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Minute)
	defer cancel()
	progress(out, "installing chromium with apt-get")
	if err := apt(ctx, "update"); err != nil {
		return "", err
	}
	if err := apt(ctx, "install", "-y", "--no-install-recommends", "chromium"); err != nil {
		return "", err
	}
	if program := findChromium(); program != "" {
		return program, nil
	}
	return "", errors.New("apt-get installed chromium, and there is none in the path")
}

func findChromium() string {
	for _, name := range chromiumNames {
		if program, err := exec.LookPath(name); err == nil {
			return program
		}
	}
	return ""
}

// browserFrame is more than what the browser takes of a window's height for
// itself, which differs from run to run.
const browserFrame = 200

// Screenshot has the browser draw the file and writes a PNG of the size to the
// path.
func Screenshot(ctx context.Context, program, file, target string, width, height int) error {
	profile, err := os.MkdirTemp("", scratchPrefix+"chromium-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(profile)
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	file, err = filepath.Abs(file)
	if err != nil {
		return err
	}
	command := exec.Command(program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
		"--window-size="+strconv.Itoa(width)+","+strconv.Itoa(height+browserFrame), "--virtual-time-budget=3000", "--user-data-dir="+profile, "--screenshot="+target, "file://"+file)
	command.Dir = profile
	if _, err := runTool(ctx, command); err != nil {
		return err
	}
	if !exists(target) {
		return errors.New("the browser ended without a picture")
	}
	return crop(target, width, height)
}

// crop keeps the upper left of a picture.
func crop(path string, width, height int) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	whole, err := png.Decode(file)
	_ = file.Close()
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	part, ok := whole.(interface {
		SubImage(r image.Rectangle) image.Image
	})
	if !ok || !image.Rect(0, 0, width, height).In(whole.Bounds()) {
		return fmt.Errorf("%s: the picture is %v, too small to take %d x %d of it", path, whole.Bounds(), width, height)
	}
	if file, err = os.Create(path); err != nil {
		return err
	}
	encoder := png.Encoder{CompressionLevel: png.BestCompression}
	err = encoder.Encode(file, part.SubImage(image.Rect(0, 0, width, height)))
	return errors.Join(err, file.Close())
}
