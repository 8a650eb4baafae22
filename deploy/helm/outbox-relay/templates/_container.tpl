{{/* The relay's container, its environment and its volumes. */}}

{{/* Values of the user with templates in them. Called with (dict "context" $ "value" …); a map or a list. */}}
{{- define "outbox-relay.tpl" -}}
{{- $text := toYaml .value -}}
{{- ternary (tpl $text .context) $text (contains "{{" $text) -}}
{{- end -}}

{{/* A secret's name may be a template: '{{ .Release.Name }}-db-app'. */}}
{{- define "outbox-relay.secretVariable" -}}
- name: {{ .name }}
  valueFrom:
    secretKeyRef:
      name: {{ tpl .secret .context }}
      key: {{ .key }}
{{- end -}}

{{/*
The environment. Called with the chart's context, or with (dict "context" $ "containerName" "…" "database" …), where
database is the secret with the URL, its name and key, in place of the one of the values.
*/}}
{{- define "outbox-relay.env" -}}
{{- $context := .context | default . -}}
{{- $values := $context.Values -}}
{{- $named := list -}}
{{- range $values.extraEnv }}{{ $named = append $named .name }}{{ end -}}
- name: RELAY_CONFIG
  value: /etc/outbox-relay/relay.yaml
{{- if not (has "GOMEMLIMIT" $named) }}
# So that garbage is collected sooner near the limit.
- name: GOMEMLIMIT
  valueFrom:
    resourceFieldRef:
      resource: limits.memory
      containerName: {{ .containerName | default "outbox-relay" }}
{{- end }}
{{- if .database }}
{{ include "outbox-relay.secretVariable" (dict "context" $context "name" "DATABASE_URL" "secret" .database.name "key" .database.key) }}
{{- else if $values.database.existingSecret.name }}
{{ include "outbox-relay.secretVariable" (dict "context" $context "name" "DATABASE_URL" "secret" $values.database.existingSecret.name "key" $values.database.existingSecret.key) }}
{{- else if $values.database.url }}
{{ include "outbox-relay.secretVariable" (dict "context" $context "name" "DATABASE_URL" "secret" (include "outbox-relay.fullname" $context) "key" "database-url") }}
{{- end }}
{{- with $values.database.directExistingSecret }}
{{- if .name }}
{{ include "outbox-relay.secretVariable" (dict "context" $context "name" "DATABASE_DIRECT_URL" "secret" .name "key" .key) }}
{{- end }}
{{- end }}
{{- with $values.httpToken.existingSecret }}
{{- if .name }}
{{ include "outbox-relay.secretVariable" (dict "context" $context "name" "HTTP_TOKEN" "secret" .name "key" .key) }}
{{- end }}
{{- end }}
{{- range $sink, $credentials := $values.credentials }}
{{- with $credentials.kafkaUser }}
{{- if .usernameKey }}
{{ include "outbox-relay.secretVariable" (dict "context" $context "name" (include "outbox-relay.usernameVariable" $sink) "secret" .existingSecret "key" .usernameKey) }}
{{- end }}
{{- end }}
{{- with $credentials.rabbitmqUser }}
{{ include "outbox-relay.secretVariable" (dict "context" $context "name" (include "outbox-relay.urlVariable" $sink) "secret" .existingSecret "key" (.key | default "connection_string")) }}
{{- end }}
{{- end }}
{{- with $values.extraEnv }}
{{ include "outbox-relay.tpl" (dict "context" $context "value" .) }}
{{- end }}
{{- end -}}

{{/*
Volumes for a pod with the relay in it. Called with the chart's context, or with (dict "context" $ "configMap" "…").
Secrets are readable for every user, because the user is not known where the relay is a sidecar or the platform gives
out ids (OpenShift); nothing but the relay mounts them.
*/}}
{{- define "outbox-relay.volumes" -}}
{{- $context := .context | default . -}}
- name: outbox-relay-config
  configMap:
    name: {{ .configMap | default (include "outbox-relay.fullname" $context) }}
{{- range $sink, $credentials := $context.Values.credentials }}
{{- with $credentials.kafkaUser }}
- name: outbox-relay-{{ $sink }}-user
  secret:
    secretName: {{ tpl .existingSecret $context }}
    defaultMode: 0444
{{- end }}
{{- with $credentials.clusterCA }}
- name: outbox-relay-{{ $sink }}-ca
  secret:
    secretName: {{ tpl .existingSecret $context }}
    defaultMode: 0444
{{- end }}
{{- end }}
{{- with $context.Values.extraVolumes }}
{{ include "outbox-relay.tpl" (dict "context" $context "value" .) }}
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
{{ include "outbox-relay.tpl" (dict "context" $ "value" .) }}
{{- end }}
{{- end -}}

{{/* What every container of the relay has, whatever it runs. */}}
{{- define "outbox-relay.containerBase" -}}
image: {{ include "outbox-relay.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- /* So that the reason is in the pod's status, where kubectl describe and alerts show it. */}}
terminationMessagePolicy: FallbackToLogsOnError
{{- with .Values.securityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.extraEnvFrom }}
envFrom:
  {{- include "outbox-relay.tpl" (dict "context" $ "value" .) | nindent 2 }}
{{- end }}
{{- with .Values.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
volumeMounts:
  {{- include "outbox-relay.volumeMounts" . | nindent 2 }}
{{- end -}}

{{/* A probe, which speaks TLS when the listener does. Called with (dict "context" $ "probe" …). */}}
{{- define "outbox-relay.probe" -}}
{{- $probe := deepCopy .probe -}}
{{- if and $probe.httpGet (eq (include "outbox-relay.httpScheme" .context) "https") (not $probe.httpGet.scheme) -}}
{{- $_ := set $probe.httpGet "scheme" "HTTPS" -}}
{{- end -}}
{{- toYaml $probe -}}
{{- end -}}

{{/* The container that relays. */}}
{{- define "outbox-relay.container" -}}
{{- $port := include "outbox-relay.httpPort" . -}}
name: outbox-relay
args: [run]
{{ include "outbox-relay.containerBase" . }}
env:
  {{- include "outbox-relay.env" . | nindent 2 }}
{{- if $port }}
ports:
  - name: relay-http
    containerPort: {{ $port }}
    protocol: TCP
{{- with .Values.livenessProbe }}
livenessProbe:
  {{- include "outbox-relay.probe" (dict "context" $ "probe" .) | nindent 2 }}
{{- end }}
{{- with .Values.readinessProbe }}
readinessProbe:
  {{- include "outbox-relay.probe" (dict "context" $ "probe" .) | nindent 2 }}
{{- end }}
{{- with .Values.startupProbe }}
startupProbe:
  {{- include "outbox-relay.probe" (dict "context" $ "probe" .) | nindent 2 }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Runs relay check. Called with (dict "context" $ "offline" true): the configuration only, reaching nothing. */}}
{{- define "outbox-relay.checkContainer" -}}
name: outbox-relay-check
args: [check{{ if .offline }}, --offline{{ end }}]
{{ include "outbox-relay.containerBase" .context }}
env:
  {{- include "outbox-relay.env" (dict "context" .context "containerName" "outbox-relay-check") | nindent 2 }}
{{- end -}}

{{/* The init step, where there is one. */}}
{{- define "outbox-relay.initContainers" -}}
{{- if ne .Values.checkOnStart "none" }}
- {{- include "outbox-relay.checkContainer" (dict "context" . "offline" (eq .Values.checkOnStart "config")) | nindent 2 }}
{{- end }}
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
{{- include "outbox-relay.initContainers" . | trim }}
- restartPolicy: Always
  {{- include "outbox-relay.container" . | nindent 2 }}
{{- end -}}

{{/*
Annotations for a pod with the relay in it: it starts anew when its configuration changes. A secret that an operator
made is not known here: see the README for how to restart when one is rotated.
*/}}
{{- define "outbox-relay.podAnnotations" -}}
outbox-relay/checksum-config: {{ include "outbox-relay.config" . | sha256sum }}
{{- if .Values.database.url }}
outbox-relay/checksum-secret: {{ .Values.database.url | sha256sum }}
{{- end }}
{{- end -}}

{{/* What a pod of the chart's own has besides its containers. Called with (dict "context" $). */}}
{{- define "outbox-relay.podBase" -}}
automountServiceAccountToken: {{ .Values.serviceAccount.automountToken }}
{{- include "outbox-relay.imagePullSecrets" . }}
{{- with .Values.podSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .Values.hostAliases }}
hostAliases:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.dnsPolicy }}
dnsPolicy: {{ . }}
{{- end }}
{{- with .Values.dnsConfig }}
dnsConfig:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
