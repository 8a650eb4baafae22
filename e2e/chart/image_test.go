package chart_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// The sandboxes stand for the image: what they take from it is in its recipe.
func TestSandboxesAreAsTheImage(t *testing.T) {
	t.Parallel()
	recipe, err := os.ReadFile("../../deploy/image/Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{fmt.Sprintf("ENTRYPOINT [%q]", entrypoint), fmt.Sprintf("USER %d:%d", nonRoot, nonRoot)} {
		if !strings.Contains("\n"+string(recipe), "\n"+line+"\n") {
			t.Errorf("the image's recipe has no line %s:\n%s", line, recipe)
		}
	}
}
