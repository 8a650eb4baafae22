{{/* Names, labels and the image. */}}

{{- define "outbox-relay.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* At most 53 characters, so that a suffix such as -dashboard fits behind it. */}}
{{- define "outbox-relay.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 53 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 53 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 53 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What all pods of the release have in common: relays, the migration, the test. */}}
{{- define "outbox-relay.releaseLabels" -}}
app.kubernetes.io/name: {{ include "outbox-relay.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* What the Deployment's pods have, and nothing else has. */}}
{{- define "outbox-relay.selectorLabels" -}}
{{ include "outbox-relay.releaseLabels" . }}
app.kubernetes.io/component: relay
{{- end -}}

{{- define "outbox-relay.labels" -}}
{{- $labels := dict
  "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-")
  "app.kubernetes.io/version" (include "outbox-relay.version" .)
  "app.kubernetes.io/managed-by" .Release.Service
  "app.kubernetes.io/part-of" "outbox-relay" -}}
{{- toYaml (mergeOverwrite $labels (.Values.commonLabels | default dict) (include "outbox-relay.releaseLabels" . | fromYaml)) -}}
{{- end -}}

{{/*
Labels of a pod: without the chart's version, so that a new chart alone does not start relays anew. Called with
(dict "context" $ "component" "relay"). Nobody can override what selectors go by.
*/}}
{{- define "outbox-relay.podLabels" -}}
{{- $own := mergeOverwrite (include "outbox-relay.releaseLabels" .context | fromYaml) (dict "app.kubernetes.io/component" .component) -}}
{{- $labels := dict "app.kubernetes.io/version" (include "outbox-relay.version" .context) "app.kubernetes.io/part-of" "outbox-relay" -}}
{{- toYaml (mergeOverwrite $labels (.context.Values.commonLabels | default dict) (.context.Values.podLabels | default dict) $own) -}}
{{- end -}}

{{/* A label's value: a tag may hold what a label may not. */}}
{{- define "outbox-relay.version" -}}
{{- .Values.image.tag | default .Chart.AppVersion | replace "+" "_" | trunc 63 | trimAll "-_." -}}
{{- end -}}

{{/*
metadata of a resource. Called with (dict "context" $); "suffix" comes after the full name, "labels" and "annotations"
beside those that all resources have, "namespace" in place of the release's.
*/}}
{{- define "outbox-relay.metadata" -}}
name: {{ include "outbox-relay.fullname" .context }}{{ .suffix | default "" }}
namespace: {{ .namespace | default .context.Release.Namespace }}
labels:
  {{- toYaml (mergeOverwrite (dict) (.labels | default dict) (include "outbox-relay.labels" .context | fromYaml)) | nindent 2 }}
{{- with mergeOverwrite (dict) (.context.Values.commonAnnotations | default dict) (.annotations | default dict) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "outbox-relay.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "outbox-relay.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "outbox-relay.image" -}}
{{- $image := .Values.image -}}
{{- $registry := (.Values.global | default dict).imageRegistry | default $image.registry -}}
{{- $name := ternary (printf "%s/%s" $registry $image.repository) $image.repository (ne $registry "") -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $name $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name ($image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- define "outbox-relay.imagePullSecrets" -}}
{{- with concat ((.Values.global | default dict).imagePullSecrets | default list) .Values.imagePullSecrets | uniq }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
