package main

import (
	"fmt"
	"html"
	"html/template"
	"math"
	"slices"
	"strings"
	"time"
)

// The picture's measures, in pixels. Grafana's grid has 24 columns.
const (
	columnWidth = 58
	rowHeight   = 34
	gap         = 8
	margin      = 16
	pageWidth   = 24*columnWidth + 2*margin
	titleHeight = 28
	axisWidth   = 56
	axisHeight  = 20
	legendLine  = 17
)

// palette is Grafana's classic one, about.
var palette = []string{"#73bf69", "#f2cc0c", "#5794f2", "#ff780a", "#f2495c", "#b877d9", "#37872d", "#fade2a", "#8ab8ff", "#ffa6b0"}

// thresholdColors are Grafana's names.
var thresholdColors = map[string]string{"green": "#1a7f4b", "orange": "#d9730d", "yellow": "#b58900", "red": "#c4162a"}

// drawnPanel is a panel as it stands on the page.
type drawnPanel struct {
	Title                    string
	X, Y, Width, Height      int
	Plot                     template.HTML // of a time series
	Legend                   []legendEntry
	Stats                    []stat // of a stat panel
	PlotHeight, LegendHeight int
}

type legendEntry struct{ Name, Color string }

type stat struct{ Name, Value, Color string }

// drawPanel draws what the queries found.
func drawPanel(p panel, all []series, w window, events []event) (drawnPanel, error) {
	drawn := drawnPanel{
		Title: p.Title,
		X:     margin + p.GridPos.X*columnWidth, Y: p.GridPos.Y * rowHeight,
		Width: p.GridPos.W*columnWidth - gap, Height: p.GridPos.H*rowHeight - gap,
	}
	slices.SortFunc(all, func(a, b series) int { return strings.Compare(a.name, b.name) })
	switch p.Type {
	case "stat", "gauge", "bargauge":
		drawn.Stats = stats(p, all)
	case "timeseries", "graph":
		drawn.timeSeries(p, all, w, events)
	default:
		return drawnPanel{}, fmt.Errorf("panel %q: nothing is known of type %q", p.Title, p.Type)
	}
	return drawn, nil
}

// stats are the last values, in the colour of their threshold.
func stats(p panel, all []series) []stat {
	var found []stat
	for _, s := range all {
		value, ok := s.last()
		if !ok {
			continue
		}
		color := thresholdColors["green"]
		for _, t := range p.FieldConfig.Defaults.Thresholds.Steps {
			if t.Value == nil || value >= *t.Value {
				color = thresholdColors[t.Color]
			}
		}
		one := stat{Value: format(value, p.FieldConfig.Defaults.Unit), Color: color}
		if len(all) > 1 {
			one.Name = s.name
		}
		found = append(found, one)
	}
	return found
}

// plot is where lines are drawn.
type plot struct {
	svg           strings.Builder
	width, height float64 // without the axes
	window        window
	top           float64
}

func (p *plot) x(at time.Time) float64 {
	return axisWidth + p.width*at.Sub(p.window.from).Seconds()/p.window.to.Sub(p.window.from).Seconds()
}

func (p *plot) y(value float64) float64 { return 8 + p.height*(1-value/p.top) }

func (d *drawnPanel) timeSeries(p panel, all []series, w window, events []event) {
	colors := map[string]string{}
	for _, s := range all {
		if _, known := colors[s.name]; known {
			continue
		}
		color := palette[len(colors)%len(palette)]
		colors[s.name] = color
		d.Legend = append(d.Legend, legendEntry{s.name, color})
	}
	d.LegendHeight = legendLine * d.legendLines()
	d.PlotHeight = d.Height - titleHeight - d.LegendHeight - 6
	graph := &plot{width: float64(d.Width - axisWidth - 16), height: float64(d.PlotHeight - axisHeight - 8), window: w}
	highest := 0.0
	for _, s := range all {
		for _, v := range s.samples {
			if !math.IsNaN(v.value) && !math.IsInf(v.value, 0) {
				highest = max(highest, v.value)
			}
		}
	}
	values := ticks(highest, p.FieldConfig.Defaults.Unit)
	graph.top = values[len(values)-1]
	graph.axes(values, p.FieldConfig.Defaults.Unit)
	graph.events(events)
	for _, s := range all {
		graph.line(s, colors[s.name])
	}
	d.Plot = template.HTML(graph.svg.String()) //nolint:gosec // texts in it are escaped
}

// legendLines guesses how many lines the names need.
func (d *drawnPanel) legendLines() int {
	lines, used := 1, 0
	for _, e := range d.Legend {
		width := 30 + 7*len(e.Name)
		if used > 0 && used+width > d.Width-20 {
			lines, used = lines+1, 0
		}
		used += width
	}
	return lines
}

func (p *plot) axes(values []float64, unit string) {
	for _, v := range values {
		y := p.y(v)
		fmt.Fprintf(&p.svg, `<line class="grid" x1="%d" x2="%s" y1="%s" y2="%s"/>`, axisWidth, coordinate(axisWidth+p.width), coordinate(y), coordinate(y))
		fmt.Fprintf(&p.svg, `<text class="axis" text-anchor="end" x="%d" y="%s">%s</text>`, axisWidth-6, coordinate(y+4), html.EscapeString(format(v, unit)))
	}
	const every = time.Minute
	for at := p.window.from.Truncate(every).Add(every); at.Before(p.window.to); at = at.Add(every) {
		x := p.x(at)
		fmt.Fprintf(&p.svg, `<line class="grid" x1="%s" x2="%s" y1="8" y2="%s"/>`, coordinate(x), coordinate(x), coordinate(8+p.height))
		fmt.Fprintf(&p.svg, `<text class="axis" text-anchor="middle" x="%s" y="%s">%s</text>`, coordinate(x), coordinate(p.height+22), at.Format("15:04"))
	}
}

// events are numbered lines, which the head of the page explains.
func (p *plot) events(events []event) {
	for i, e := range events {
		x := p.x(e.at)
		fmt.Fprintf(&p.svg, `<line class="event" x1="%s" x2="%s" y1="8" y2="%s"/>`, coordinate(x), coordinate(x), coordinate(8+p.height))
		fmt.Fprintf(&p.svg, `<text class="event" text-anchor="middle" x="%s" y="7">%d</text>`, coordinate(x), i+1)
	}
}

// line draws a series, interrupted where it has no values.
func (p *plot) line(s series, color string) {
	var stretch []sample
	flush := func() {
		if len(stretch) > 0 {
			p.stretch(stretch, color)
		}
		stretch = nil
	}
	for _, v := range s.samples {
		if math.IsNaN(v.value) || math.IsInf(v.value, 0) {
			flush()
			continue
		}
		if len(stretch) > 0 && v.at.Sub(stretch[len(stretch)-1].at) > p.window.step*3/2 {
			flush()
		}
		stretch = append(stretch, v)
	}
	flush()
}

func (p *plot) stretch(samples []sample, color string) {
	var points strings.Builder
	for _, v := range samples {
		fmt.Fprintf(&points, "%s,%s ", coordinate(p.x(v.at)), coordinate(p.y(v.value)))
	}
	first, last := coordinate(p.x(samples[0].at)), coordinate(p.x(samples[len(samples)-1].at))
	ground := coordinate(p.y(0))
	fmt.Fprintf(&p.svg, `<polygon points="%s,%s %s%s,%s" fill="%s" fill-opacity="0.1"/>`, first, ground, points.String(), last, ground, color)
	fmt.Fprintf(&p.svg, `<polyline points="%s" fill="none" stroke="%s" stroke-width="1.6" stroke-linejoin="round" stroke-linecap="round"/>`, points.String(), color)
}
