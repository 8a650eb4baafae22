package servers

import (
	"image"
	"image/color"
	"image/png"
	"os"
	"path/filepath"
	"testing"
)

func TestCrop(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "picture.png")
	picture := image.NewRGBA(image.Rect(0, 0, 40, 30))
	picture.Set(19, 9, color.White)
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := png.Encode(file, picture); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	if err := crop(path, 20, 10); err != nil {
		t.Fatal(err)
	}
	if file, err = os.Open(path); err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	got, err := png.Decode(file)
	if err != nil {
		t.Fatal(err)
	}
	if r, _, _, _ := got.At(19, 9).RGBA(); got.Bounds() != image.Rect(0, 0, 20, 10) || r == 0 {
		t.Errorf("%v with %d at its corner", got.Bounds(), r)
	}
	if err := crop(path, 50, 10); err == nil {
		t.Error("it is not that wide")
	}
}
