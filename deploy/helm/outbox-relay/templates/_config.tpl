{{/* relay.yaml: the configuration of values, and what the chart knows beyond it. */}}

{{- define "outbox-relay.config" -}}
{{- include "outbox-relay.validate" . -}}
{{- $config := deepCopy .Values.config -}}
{{- $database := $config.database | default dict -}}
{{- if not (or $database.url $database.url_file) -}}
{{- $_ := set $database "url" "${DATABASE_URL}" -}}
{{- end -}}
{{- if .Values.database.directExistingSecret.name -}}
{{- $_ := set $database "direct_url" "${DATABASE_DIRECT_URL}" -}}
{{- end -}}
{{- $_ := set $config "database" $database -}}
{{- $http := $config.http | default dict -}}
{{- if not (hasKey $http "listen") -}}
{{- $_ := set $http "listen" ":9464" -}}
{{- end -}}
{{- if .Values.httpToken.existingSecret.name -}}
{{- $_ := set $http "token" "${HTTP_TOKEN}" -}}
{{- end -}}
{{- $_ := set $config "http" $http -}}
{{- range $sink, $credentials := .Values.credentials -}}
{{- $settings := index $config.sinks $sink -}}
{{- $folder := printf "/etc/outbox-relay/%s" $sink -}}
{{- with $credentials.kafkaUser -}}
{{- $kafka := $settings.kafka -}}
{{- if eq .type "tls" -}}
{{- $files := dict "enabled" true "cert_file" (printf "%s-user/%s" $folder (.certKey | default "user.crt")) "key_file" (printf "%s-user/%s" $folder (.keyKey | default "user.key")) -}}
{{- $_ := set $kafka "tls" (mergeOverwrite (dict) ($kafka.tls | default dict) $files) -}}
{{- else -}}
{{- $username := .username | default (tpl .existingSecret $) -}}
{{- if .usernameKey -}}{{- $username = printf "${%s}" (include "outbox-relay.usernameVariable" $sink) -}}{{- end -}}
{{- $_ := set $kafka "sasl" (dict "mechanism" .type "username" $username "password_file" (printf "%s-user/%s" $folder (.passwordKey | default "password"))) -}}
{{- end -}}
{{- end -}}
{{- with $credentials.clusterCA -}}
{{- $broker := get $settings (include "outbox-relay.kind" $settings) -}}
{{- $tls := dict "enabled" true "ca_file" (printf "%s-ca/%s" $folder (.key | default "ca.crt")) -}}
{{- $_ := set $broker "tls" (mergeOverwrite (dict) ($broker.tls | default dict) $tls) -}}
{{- end -}}
{{- with $credentials.rabbitmqUser -}}
{{- $_ := set $settings.rabbitmq "url" (printf "${%s}" (include "outbox-relay.urlVariable" $sink)) -}}
{{- end -}}
{{- end -}}
{{- toYaml $config -}}
{{- end -}}

{{/* kafka or rabbitmq: the one key of a sink. */}}
{{- define "outbox-relay.kind" -}}
{{- keys . | first -}}
{{- end -}}

{{/* Environment variables of a sink. */}}
{{- define "outbox-relay.urlVariable" -}}
SINK_{{ . | upper | replace "-" "_" }}_URL
{{- end -}}
{{- define "outbox-relay.usernameVariable" -}}
SINK_{{ . | upper | replace "-" "_" }}_USERNAME
{{- end -}}

{{/* The listener's port; empty when config.http.listen turns it off. */}}
{{- define "outbox-relay.httpPort" -}}
{{- $http := .Values.config.http | default dict -}}
{{- $listen := ternary $http.listen ":9464" (hasKey $http "listen") -}}
{{- regexFind "[0-9]+$" $listen -}}
{{- end -}}

{{- define "outbox-relay.httpScheme" -}}
{{- ternary "https" "http" (ne (dig "http" "tls" "cert_file" "" .Values.config) "") -}}
{{- end -}}

{{/* Seconds of a duration as Go writes it: 1m30s is 90. */}}
{{- define "outbox-relay.seconds" -}}
{{- $units := dict "h" 3600.0 "m" 60.0 "s" 1.0 "ms" 0.001 -}}
{{- $seconds := 0.0 -}}
{{- range regexFindAll "[0-9.]+[a-z]+" . -1 -}}
{{- $seconds = addf $seconds (mulf (float64 (regexFind "[0-9.]+" .)) (get $units (regexFind "[a-z]+" .) | default 0.0)) -}}
{{- end -}}
{{- $seconds -}}
{{- end -}}
