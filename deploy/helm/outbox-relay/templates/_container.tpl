{{/* The relay's container, its environment and its volumes. */}}

{{- define "outbox-relay.secretVariable" -}}
- name: {{ .name }}
  valueFrom:
    secretKeyRef:
      name: {{ .secret }}
      key: {{ .key }}
{{- end -}}

{{- define "outbox-relay.env" -}}
{{- $values := .Values -}}
- name: RELAY_CONFIG
  value: /etc/outbox-relay/relay.yaml
# So that garbage is collected sooner near the limit.
- name: GOMEMLIMIT
  valueFrom:
    resourceFieldRef:
      resource: limits.memory
      containerName: {{ .containerName | default "outbox-relay" }}
{{- if $values.database.existingSecret.name }}
{{ include "outbox-relay.secretVariable" (dict "name" "DATABASE_URL" "secret" $values.database.existingSecret.name "key" $values.database.existingSecret.key) }}
{{- else if $values.database.url }}
{{ include "outbox-relay.secretVariable" (dict "name" "DATABASE_URL" "secret" (include "outbox-relay.fullname" .) "key" "database-url") }}
{{- end }}
{{- with $values.database.directExistingSecret }}
{{- if .name }}
{{ include "outbox-relay.secretVariable" (dict "name" "DATABASE_DIRECT_URL" "secret" .name "key" .key) }}
{{- end }}
{{- end }}
{{- with $values.httpToken.existingSecret }}
{{- if .name }}
{{ include "outbox-relay.secretVariable" (dict "name" "HTTP_TOKEN" "secret" .name "key" .key) }}
{{- end }}
{{- end }}
{{- range $sink, $credentials := $values.credentials }}
{{- with $credentials.rabbitmqUser }}
{{ include "outbox-relay.secretVariable" (dict "name" (include "outbox-relay.urlVariable" $sink) "secret" .existingSecret "key" (.key | default "connection_string")) }}
{{- end }}
{{- end }}
{{- with $values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Volumes for a pod with the relay in it. */}}
{{- define "outbox-relay.volumes" -}}
- name: outbox-relay-config
  configMap:
    name: {{ include "outbox-relay.fullname" . }}
{{- range $sink, $credentials := .Values.credentials }}
{{- with $credentials.kafkaUser }}
- name: outbox-relay-{{ $sink }}-user
  secret:
    secretName: {{ .existingSecret }}
    defaultMode: 0440
{{- end }}
{{- with $credentials.clusterCA }}
- name: outbox-relay-{{ $sink }}-ca
  secret:
    secretName: {{ .existingSecret }}
    defaultMode: 0440
{{- end }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "outbox-relay.volumeMounts" -}}
- name: outbox-relay-config
  mountPath: /etc/outbox-relay/relay.yaml
  subPath: relay.yaml
  readOnly: true
{{- range $sink, $credentials := .Values.credentials }}
{{- if $credentials.kafkaUser }}
- name: outbox-relay-{{ $sink }}-user
  mountPath: /etc/outbox-relay/{{ $sink }}-user
  readOnly: true
{{- end }}
{{- if $credentials.clusterCA }}
- name: outbox-relay-{{ $sink }}-ca
  mountPath: /etc/outbox-relay/{{ $sink }}-ca
  readOnly: true
{{- end }}
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* What every container of the relay has, whatever it runs. */}}
{{- define "outbox-relay.containerBase" -}}
image: {{ include "outbox-relay.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- with .Values.securityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.extraEnvFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
volumeMounts:
  {{- include "outbox-relay.volumeMounts" . | nindent 2 }}
{{- end -}}

{{/* The container that relays. */}}
{{- define "outbox-relay.container" -}}
name: outbox-relay
args: [run]
{{ include "outbox-relay.containerBase" . }}
env:
  {{- include "outbox-relay.env" . | nindent 2 }}
ports:
  - name: http
    containerPort: 9464
{{- with .Values.livenessProbe }}
livenessProbe:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.readinessProbe }}
readinessProbe:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.startupProbe }}
startupProbe:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Checks configuration, database and sinks before anything starts. */}}
{{- define "outbox-relay.checkContainer" -}}
name: outbox-relay-check
args: [check]
{{ include "outbox-relay.containerBase" . }}
env:
  {{- include "outbox-relay.env" (merge (dict "containerName" "outbox-relay-check") .) | nindent 2 }}
{{- end -}}

{{/*
The relay as a native sidecar: an entry of a pod's initContainers. Take this chart as a dependency with
deployment.enabled: false, and in the pod's template:

      initContainers:
        {{- include "outbox-relay.sidecar" (index .Subcharts "outbox-relay") | nindent 8 }}
      volumes:
        {{- include "outbox-relay.volumes" (index .Subcharts "outbox-relay") | nindent 8 }}

It starts before the application and ends after it, so that the last messages are relayed too. Its readiness is the
database's, not the broker's: a broker's outage does not take the application down.
*/}}
{{- define "outbox-relay.sidecar" -}}
{{- if .Values.checkOnStart }}
- {{- include "outbox-relay.checkContainer" . | nindent 2 }}
{{- end }}
- restartPolicy: Always
  {{- include "outbox-relay.container" . | nindent 2 }}
{{- end -}}

{{/* Annotations for a pod with the relay in it: it starts anew when its configuration changes. */}}
{{- define "outbox-relay.podAnnotations" -}}
outbox-relay/checksum-config: {{ include "outbox-relay.config" . | sha256sum }}
{{- end -}}
