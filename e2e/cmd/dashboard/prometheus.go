package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// sample is one value; NaN is none.
type sample struct {
	at    time.Time
	value float64
}

// series is what one line shows.
type series struct {
	name    string
	samples []sample
}

// last is the newest value.
func (s series) last() (float64, bool) {
	for i := len(s.samples) - 1; i >= 0; i-- {
		if !math.IsNaN(s.samples[i].value) {
			return s.samples[i].value, true
		}
	}
	return 0, false
}

// api is Prometheus' HTTP interface.
type api struct{ address string }

// window is a range of time that is looked at.
type window struct {
	from, to time.Time
	step     time.Duration
}

// queryRange runs a query; each series is named by its target.
func (a api) queryRange(ctx context.Context, expr string, t target, w window) ([]series, error) {
	parameters := url.Values{
		"query": {expr}, "step": {strconv.FormatFloat(w.step.Seconds(), 'f', -1, 64)},
		"start": {strconv.FormatInt(w.from.Unix(), 10)}, "end": {strconv.FormatInt(w.to.Unix(), 10)},
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, a.address+"/api/v1/query_range?"+parameters.Encode(), http.NoBody)
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	var answer struct {
		Status, Error string
		Data          struct {
			Result []struct {
				Metric map[string]string
				Values [][2]any
			}
		}
	}
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		return nil, fmt.Errorf("%s: %w", expr, err)
	}
	if answer.Status != "success" {
		return nil, fmt.Errorf("%s: %s", expr, answer.Error)
	}
	var found []series
	for _, r := range answer.Data.Result {
		s := series{name: t.legend(r.Metric)}
		for _, pair := range r.Values {
			seconds, _ := pair[0].(float64)
			text, _ := pair[1].(string)
			value, err := strconv.ParseFloat(text, 64)
			if err != nil {
				return nil, fmt.Errorf("%s: value %q: %w", expr, text, err)
			}
			s.samples = append(s.samples, sample{time.UnixMilli(int64(seconds * 1000)), value})
		}
		found = append(found, s)
	}
	return found, nil
}

// hasData reports whether anything is to be seen.
func hasData(all []series) bool {
	for _, s := range all {
		if _, ok := s.last(); ok {
			return true
		}
	}
	return false
}
