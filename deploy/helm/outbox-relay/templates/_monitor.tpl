{{/* What PodMonitor and ServiceMonitor have in common. */}}

{{/* Called with (dict "context" $ "monitor" .Values.metrics.podMonitor "port" "…"). */}}
{{- define "outbox-relay.endpoint" -}}
port: {{ .port }}
path: /metrics
interval: {{ .monitor.interval }}
{{- with .monitor.scrapeTimeout }}
scrapeTimeout: {{ . }}
{{- end }}
{{- if eq (include "outbox-relay.httpScheme" .context) "https" }}
scheme: https
{{- end }}
{{- with .monitor.tlsConfig }}
tlsConfig:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .context.Values.httpToken.existingSecret }}
{{- if .name }}
authorization:
  credentials:
    name: {{ tpl .name $.context }}
    key: {{ .key }}
{{- end }}
{{- end }}
relabelings:
  # One job for each release, however its pods are found: alerts and dashboard go by it.
  - targetLabel: job
    replacement: {{ .monitor.job | default .context.Release.Name | quote }}
  {{- with .monitor.relabelings }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .monitor.metricRelabelings }}
metricRelabelings:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Fails where nothing would answer. Called with (dict "context" $ "name" "podMonitor"). */}}
{{- define "outbox-relay.needsListener" -}}
{{- if not (include "outbox-relay.httpPort" .context) -}}
{{- fail (printf "metrics.%s.enabled: there is nothing to scrape, config.http.listen is empty" .name) -}}
{{- end -}}
{{- end -}}

{{/*
Which series the alerts are about: {namespace="…",job="…"}. The job is known when the chart says how relays are scraped.
*/}}
{{- define "outbox-relay.matchers" -}}
{{- $matchers := dict "namespace" .Release.Namespace -}}
{{- range $monitor := list .Values.metrics.podMonitor .Values.metrics.serviceMonitor -}}
{{- if $monitor.enabled }}{{ $_ := set $matchers "job" ($monitor.job | default $.Release.Name) }}{{ end -}}
{{- end -}}
{{- with .Values.metrics.prometheusRule.selector -}}
{{- $matchers = . -}}
{{- end -}}
{{- $texts := list -}}
{{- range $label, $value := $matchers -}}
{{- $texts = append $texts (printf "%s=%q" $label (tpl $value $)) -}}
{{- end -}}
{{ printf "{%s}" (join "," $texts) }}
{{- end -}}

{{/* Which series the alerts about inboxes are about: those of consumers in the release's namespace. */}}
{{- define "outbox-relay.inboxMatchers" -}}
{{- $texts := list -}}
{{- range $label, $value := .Values.metrics.prometheusRule.inboxSelector | default (dict "namespace" .Release.Namespace) -}}
{{- $texts = append $texts (printf "%s=%q" $label (tpl $value $)) -}}
{{- end -}}
{{ printf "{%s}" (join "," $texts) }}
{{- end -}}
