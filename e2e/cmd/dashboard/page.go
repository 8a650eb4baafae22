package main

import (
	_ "embed"
	"html/template"
	"os"
)

//go:embed page.html
var pageHTML string

// page is the whole picture.
type page struct {
	Title  string
	Panels []drawnPanel
	window window
	events []event
}

// headHeight is the height of the title and of what happened.
const headHeight = 92

// write makes the page and returns its height.
func (p page) write(path string) (height int, err error) {
	layout, err := template.New("page").Funcs(template.FuncMap{"number": func(i int) int { return i + 1 }}).Parse(pageHTML)
	if err != nil {
		return 0, err
	}
	for i := range p.Panels {
		p.Panels[i].Y += headHeight
		height = max(height, p.Panels[i].Y+p.Panels[i].Height)
	}
	height += margin
	file, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	var happened []string
	for _, e := range p.events {
		happened = append(happened, e.text)
	}
	err = layout.Execute(file, map[string]any{
		"Title": p.Title, "Panels": p.Panels, "Width": pageWidth, "Height": height, "Events": happened,
		"Range": p.window.from.Format("15:04:05") + " to " + p.window.to.Format("15:04:05"),
	})
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	return height, err
}
