{{/* What the schema cannot say. Each message names the value and what to do. */}}

{{- define "outbox-relay.validate" -}}
{{- include "outbox-relay.validateDatabase" . -}}
{{- include "outbox-relay.validateHTTP" . -}}
{{- include "outbox-relay.validateSinks" . -}}
{{- include "outbox-relay.validateEnv" . -}}
{{- include "outbox-relay.validateGrace" . -}}
{{- end -}}

{{- define "outbox-relay.validateDatabase" -}}
{{- $database := .Values.config.database | default dict -}}
{{- $ways := list -}}
{{- if .Values.database.existingSecret.name }}{{ $ways = append $ways "database.existingSecret" }}{{ end -}}
{{- if .Values.database.url }}{{ $ways = append $ways "database.url" }}{{ end -}}
{{- if $database.url }}{{ $ways = append $ways "config.database.url" }}{{ end -}}
{{- if $database.url_file }}{{ $ways = append $ways "config.database.url_file" }}{{ end -}}
{{- range .Values.extraEnv -}}
{{- if and (eq .name "DATABASE_URL") (not $database.url) }}{{ $ways = append $ways "extraEnv" }}{{ end -}}
{{- end -}}
{{- if gt (len $ways) 1 -}}
{{- fail (printf "the database's URL is given twice, by %s: give one of them" (join " and " $ways)) -}}
{{- end -}}
{{- if not $ways -}}
{{- fail "database.existingSecret.name: the secret with the database's URL is needed (CloudNativePG: <cluster>-app); or database.url" -}}
{{- end -}}
{{- if and .Values.database.directExistingSecret.name (or $database.direct_url $database.direct_url_file) -}}
{{- fail "the direct URL is given twice, by database.directExistingSecret and config.database: give one of them" -}}
{{- end -}}
{{- include "outbox-relay.refuseSecret" (dict "path" "config.database.url" "value" $database.url "url" true) -}}
{{- include "outbox-relay.refuseSecret" (dict "path" "config.database.direct_url" "value" $database.direct_url "url" true) -}}
{{- include "outbox-relay.refuseSecret" (dict "path" "config.database.password" "value" $database.password) -}}
{{- end -}}

{{- define "outbox-relay.validateHTTP" -}}
{{- $http := .Values.config.http | default dict -}}
{{- if and .Values.httpToken.existingSecret.name (or $http.token $http.token_file) -}}
{{- fail "the token is given twice, by httpToken.existingSecret and config.http: give one of them" -}}
{{- end -}}
{{- include "outbox-relay.refuseSecret" (dict "path" "config.http.token" "value" $http.token) -}}
{{- if $http.listen -}}
{{- if not (regexMatch ":[0-9]+$" $http.listen) -}}
{{- fail (printf "config.http.listen: %q does not end with a port, for example :9464; the pod's port and probes go by it" $http.listen) -}}
{{- end -}}
{{- if regexMatch "^(127\\.|localhost:|\\[::1\\])" $http.listen -}}
{{- fail (printf "config.http.listen: nothing reaches %s from outside the pod, neither probes nor Prometheus; give :%s, or \"\" to turn the listener off" $http.listen (regexFind "[0-9]+$" $http.listen)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "outbox-relay.validateSinks" -}}
{{- $sinks := .Values.config.sinks -}}
{{- if not $sinks -}}
{{- fail "config.sinks: at least one sink is needed, for example --set 'config.sinks.main.kafka.brokers={kafka:9092}'" -}}
{{- end -}}
{{- range $sink, $settings := $sinks -}}
{{- $path := printf "config.sinks.%s" $sink -}}
{{- include "outbox-relay.refuseSecret" (dict "path" (printf "%s.kafka.sasl.password" $path) "value" (dig "kafka" "sasl" "password" "" $settings)) -}}
{{- include "outbox-relay.refuseSecret" (dict "path" (printf "%s.rabbitmq.url" $path) "value" (dig "rabbitmq" "url" "" $settings) "url" true) -}}
{{- end -}}
{{- range $sink, $credentials := .Values.credentials -}}
{{- if not (hasKey $sinks $sink) -}}
{{- fail (printf "credentials.%s: config.sinks has no sink of that name, but %s" $sink (keys $sinks | sortAlpha | join ", ")) -}}
{{- end -}}
{{- if not (regexMatch "^[a-z0-9]([-a-z0-9]{0,40}[a-z0-9])?$" $sink) -}}
{{- fail (printf "credentials.%s: the name of a sink with credentials is part of a volume's: give it lower-case letters, digits and '-' only, at most 42" $sink) -}}
{{- end -}}
{{- $settings := index $sinks $sink -}}
{{- $kind := include "outbox-relay.kind" $settings -}}
{{- $tls := dig $kind "tls" dict $settings -}}
{{- with $credentials.kafkaUser -}}
{{- if ne $kind "kafka" -}}
{{- fail (printf "credentials.%s.kafkaUser: config.sinks.%s is no Kafka sink" $sink $sink) -}}
{{- end -}}
{{- if eq .type "tls" -}}
{{- if or $tls.cert_file $tls.key_file -}}
{{- fail (printf "the certificate is given twice, by credentials.%s.kafkaUser and config.sinks.%s.kafka.tls: give one of them" $sink $sink) -}}
{{- end -}}
{{- else -}}
{{- if dig "kafka" "sasl" dict $settings -}}
{{- fail (printf "user and password are given twice, by credentials.%s.kafkaUser and config.sinks.%s.kafka.sasl: give one of them" $sink $sink) -}}
{{- end -}}
{{- if and .username .usernameKey -}}
{{- fail (printf "the user is given twice, by username and usernameKey of credentials.%s.kafkaUser: give one of them" $sink) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $credentials.clusterCA $tls.ca_file -}}
{{- fail (printf "the authority is given twice, by credentials.%s.clusterCA and config.sinks.%s.%s.tls.ca_file: give one of them" $sink $sink $kind) -}}
{{- end -}}
{{- if $credentials.rabbitmqUser -}}
{{- if ne $kind "rabbitmq" -}}
{{- fail (printf "credentials.%s.rabbitmqUser: config.sinks.%s is no RabbitMQ sink" $sink $sink) -}}
{{- end -}}
{{- if or (dig "rabbitmq" "url" "" $settings) (dig "rabbitmq" "url_file" "" $settings) -}}
{{- fail (printf "the URL is given twice, by credentials.%s.rabbitmqUser and config.sinks.%s.rabbitmq: give one of them" $sink $sink) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Variables that the chart sets cannot be in extraEnv too: the last one would win, silently. */}}
{{- define "outbox-relay.validateEnv" -}}
{{- $own := dict "RELAY_CONFIG" "the chart" -}}
{{- if or .Values.database.existingSecret.name .Values.database.url }}{{ $_ := set $own "DATABASE_URL" "database" }}{{ end -}}
{{- if .Values.database.directExistingSecret.name }}{{ $_ := set $own "DATABASE_DIRECT_URL" "database.directExistingSecret" }}{{ end -}}
{{- if .Values.httpToken.existingSecret.name }}{{ $_ := set $own "HTTP_TOKEN" "httpToken.existingSecret" }}{{ end -}}
{{- range $sink, $credentials := .Values.credentials -}}
{{- if $credentials.rabbitmqUser }}{{ $_ := set $own (include "outbox-relay.urlVariable" $sink) (printf "credentials.%s.rabbitmqUser" $sink) }}{{ end -}}
{{- if dig "kafkaUser" "usernameKey" "" $credentials }}{{ $_ := set $own (include "outbox-relay.usernameVariable" $sink) (printf "credentials.%s.kafkaUser" $sink) }}{{ end -}}
{{- end -}}
{{- range .Values.extraEnv -}}
{{- if hasKey $own .name -}}
{{- fail (printf "%s is given twice, by extraEnv and %s: give one of them" .name (get $own .name)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "outbox-relay.validateGrace" -}}
{{- $timeout := .Values.config.shutdown_timeout | default "30s" -}}
{{- if and .Values.deployment.enabled (not (contains "${" $timeout)) -}}
{{- if le (float64 .Values.terminationGracePeriodSeconds) (float64 (include "outbox-relay.seconds" $timeout)) -}}
{{- fail (printf "terminationGracePeriodSeconds: %v is not longer than config.shutdown_timeout, %s: a relay would be killed before it marks what it sent, which is then sent again" .Values.terminationGracePeriodSeconds $timeout) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Fails when config, which becomes a ConfigMap, holds a secret. A URL without a password is none, ${VARIABLES} are none. */}}
{{- define "outbox-relay.refuseSecret" -}}
{{- if .value -}}
{{- $text := regexReplaceAll "\\$\\{[^}]*\\}" .value "" -}}
{{- if ternary (regexMatch "(://[^/@]*:[^/@]+@)|((^|[\\s?&])password\\s*=\\s*[^\\s&])" $text) (ne $text "") (.url | default false) -}}
{{- fail (printf "%s holds a secret, and config becomes a ConfigMap: use an existing secret, a ${VARIABLE} from extraEnv, or a *_file from extraVolumes" .path) -}}
{{- end -}}
{{- end -}}
{{- end -}}
