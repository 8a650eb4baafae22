{{/* The endpoint of a PodMonitor or a ServiceMonitor. Called with (dict "context" $ "monitor" .Values.metrics.podMonitor). */}}
{{- define "outbox-relay.endpoint" -}}
port: http
path: /metrics
interval: {{ .monitor.interval }}
{{- with .context.Values.httpToken.existingSecret }}
{{- if .name }}
authorization:
  credentials:
    name: {{ .name }}
    key: {{ .key }}
{{- end }}
{{- end }}
{{- with .monitor.metricRelabelings }}
metricRelabelings:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
