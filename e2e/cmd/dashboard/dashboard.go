package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"
)

// dashboard is what matters here of Grafana's JSON.
type dashboard struct {
	Title      string  `json:"title"`
	Panels     []panel `json:"panels"`
	Templating struct {
		List []variable `json:"list"`
	} `json:"templating"`
}

type variable struct {
	Name     string `json:"name"`
	Type     string `json:"type"`
	AllValue string `json:"allValue"`
}

type panel struct {
	ID      int    `json:"id"`
	Type    string `json:"type"`
	Title   string `json:"title"`
	GridPos struct {
		X, Y, W, H int
	} `json:"gridPos"`
	Targets     []target `json:"targets"`
	FieldConfig struct {
		Defaults struct {
			Unit       string   `json:"unit"`
			Max        *float64 `json:"max"`
			Thresholds struct {
				Steps []threshold `json:"steps"`
			} `json:"thresholds"`
		} `json:"defaults"`
	} `json:"fieldConfig"`
	// Panels are those of a collapsed row.
	Panels []panel `json:"panels"`
}

type target struct {
	Expr         string `json:"expr"`
	LegendFormat string `json:"legendFormat"`
}

type threshold struct {
	Color string   `json:"color"`
	Value *float64 `json:"value"` // nil: from minus infinity
}

// readDashboard reads Grafana's JSON.
func readDashboard(path string) (*dashboard, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var d dashboard
	if err := json.Unmarshal(data, &d); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(d.Panels) == 0 {
		return nil, fmt.Errorf("%s has no panels", path)
	}
	return &d, nil
}

// graphs are the panels with queries, those in rows included.
func (d *dashboard) graphs() []panel {
	var found []panel
	var walk func([]panel)
	walk = func(panels []panel) {
		for _, p := range panels {
			if len(p.Targets) > 0 {
				found = append(found, p)
			}
			walk(p.Panels)
		}
	}
	walk(d.Panels)
	return found
}

// expand fills in the variables as Grafana does when "All" is chosen.
func (d *dashboard) expand(expr string, scrape, step time.Duration) (string, error) {
	var pairs []string
	for _, v := range d.Templating.List {
		value := v.AllValue
		if value == "" {
			value = ".*"
		}
		pairs = append(pairs, "${"+v.Name+"}", value, "$"+v.Name, value)
	}
	seconds := func(d time.Duration) string { return fmt.Sprintf("%ds", int(d.Seconds())) }
	pairs = append(pairs, "$__rate_interval", seconds(max(4*scrape, step+scrape)), "$__interval", seconds(step))
	expanded := strings.NewReplacer(pairs...).Replace(expr)
	if at := strings.Index(expanded, "$"); at >= 0 {
		return "", fmt.Errorf("%s: nothing is known of the variable at %s", expr, expanded[at:])
	}
	return expanded, nil
}

// legend names a series as the target says.
func (t target) legend(labels map[string]string) string {
	text := t.LegendFormat
	for name, value := range labels {
		text = strings.ReplaceAll(text, "{{"+name+"}}", value)
	}
	if text == "" || strings.Contains(text, "{{") {
		return fmt.Sprint(labels)
	}
	return text
}
