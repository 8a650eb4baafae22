{{/* relay.yaml: the configuration of values, and what the chart knows beyond it. */}}

{{- define "outbox-relay.config" -}}
{{- include "outbox-relay.validate" . -}}
{{- $config := deepCopy (.Values.config | default dict) -}}
{{- $database := $config.database | default dict -}}
{{- if not $database.url -}}
{{- $_ := set $database "url" "${DATABASE_URL}" -}}
{{- end -}}
{{- if .Values.database.directExistingSecret.name -}}
{{- $_ := set $database "direct_url" "${DATABASE_DIRECT_URL}" -}}
{{- end -}}
{{- $_ := set $config "database" $database -}}
{{- $http := $config.http | default dict -}}
{{- if not (hasKey $http "listen") -}}
{{- $_ := set $http "listen" "0.0.0.0:9464" -}}
{{- end -}}
{{- if .Values.httpToken.existingSecret.name -}}
{{- $_ := set $http "token" "${HTTP_TOKEN}" -}}
{{- end -}}
{{- $_ := set $config "http" $http -}}
{{- range $sink, $credentials := .Values.credentials -}}
{{- $settings := index $config.sinks $sink -}}
{{- with $credentials.kafkaUser -}}
{{- $kafka := $settings.kafka -}}
{{- if eq .type "tls" -}}
{{- $files := dict "enabled" true "cert_file" (printf "/etc/outbox-relay/%s-user/user.crt" $sink) "key_file" (printf "/etc/outbox-relay/%s-user/user.key" $sink) -}}
{{- $_ := set $kafka "tls" (merge (dict) ($kafka.tls | default dict) $files) -}}
{{- else -}}
{{- $sasl := dict "mechanism" .type "username" (.username | default .existingSecret) "password_file" (printf "/etc/outbox-relay/%s-user/password" $sink) -}}
{{- $_ := set $kafka "sasl" (merge (dict) ($kafka.sasl | default dict) $sasl) -}}
{{- end -}}
{{- end -}}
{{- with $credentials.clusterCA -}}
{{- $broker := $settings.kafka | default $settings.rabbitmq -}}
{{- $tls := dict "enabled" true "ca_file" (printf "/etc/outbox-relay/%s-ca/%s" $sink (.key | default "ca.crt")) -}}
{{- $_ := set $broker "tls" (merge (dict) ($broker.tls | default dict) $tls) -}}
{{- end -}}
{{- with $credentials.rabbitmqUser -}}
{{- $_ := set $settings.rabbitmq "url" (printf "${%s}" (include "outbox-relay.urlVariable" $sink)) -}}
{{- end -}}
{{- end -}}
{{- toYaml $config -}}
{{- end -}}

{{/* The environment variable of a RabbitMQ sink's URL. */}}
{{- define "outbox-relay.urlVariable" -}}
SINK_{{ . | upper | replace "-" "_" | replace "." "_" }}_URL
{{- end -}}

{{/* What the schema cannot say. */}}
{{- define "outbox-relay.validate" -}}
{{- $config := .Values.config | default dict -}}
{{- if not $config.sinks -}}
{{- fail "config.sinks: at least one sink is needed, for example --set 'config.sinks.main.kafka.brokers={kafka:9092}'" -}}
{{- end -}}
{{- $database := $config.database | default dict -}}
{{- $ways := list -}}
{{- if .Values.database.existingSecret.name }}{{ $ways = append $ways "database.existingSecret" }}{{ end -}}
{{- if .Values.database.url }}{{ $ways = append $ways "database.url" }}{{ end -}}
{{- if $database.url }}{{ $ways = append $ways "config.database.url" }}{{ end -}}
{{- if $database.url_file }}{{ $ways = append $ways "config.database.url_file" }}{{ end -}}
{{- if gt (len $ways) 1 -}}
{{- fail (printf "the database's URL is given twice, by %s: give one of them" (join " and " $ways)) -}}
{{- end -}}
{{- if not $ways -}}
{{- fail "database.existingSecret.name: the secret with the database's URL is needed (CloudNativePG: <cluster>-app); or database.url" -}}
{{- end -}}
{{- if and .Values.database.directExistingSecret.name $database.direct_url -}}
{{- fail "the direct URL is given twice, by database.directExistingSecret and config.database.direct_url: give one of them" -}}
{{- end -}}
{{- if and .Values.httpToken.existingSecret.name (or (dig "http" "token" "" $config) (dig "http" "token_file" "" $config)) -}}
{{- fail "the token is given twice, by httpToken.existingSecret and config.http: give one of them" -}}
{{- end -}}
{{- range $path, $secret := dict "config.database.url" $database.url "config.database.direct_url" $database.direct_url "config.database.password" $database.password "config.http.token" (dig "http" "token" "" $config) -}}
{{- if and $secret (not (contains "${" $secret)) (or (not (contains "url" $path)) (regexMatch "://[^/@]*:[^/@]*@" $secret)) -}}
{{- fail (printf "%s holds a secret, and config becomes a ConfigMap: use a ${VARIABLE} from extraEnv, a *_file from extraVolumes, or database.existingSecret" $path) -}}
{{- end -}}
{{- end -}}
{{- range $sink, $credentials := .Values.credentials -}}
{{- if not (hasKey $config.sinks $sink) -}}
{{- fail (printf "credentials.%s: config.sinks has no sink of that name" $sink) -}}
{{- end -}}
{{- $settings := index $config.sinks $sink -}}
{{- if and $credentials.kafkaUser (not $settings.kafka) -}}
{{- fail (printf "credentials.%s.kafkaUser: config.sinks.%s is no Kafka sink" $sink $sink) -}}
{{- end -}}
{{- if and $credentials.rabbitmqUser (not (hasKey $settings "rabbitmq")) -}}
{{- fail (printf "credentials.%s.rabbitmqUser: config.sinks.%s is no RabbitMQ sink" $sink $sink) -}}
{{- end -}}
{{- if and $credentials.rabbitmqUser (dig "rabbitmq" "url" "" $settings) -}}
{{- fail (printf "the URL is given twice, by credentials.%s.rabbitmqUser and config.sinks.%s.rabbitmq.url: give one of them" $sink $sink) -}}
{{- end -}}
{{- if $credentials.kafkaUser -}}
{{- $sasl := dig "kafka" "sasl" dict $settings -}}
{{- if or $sasl.password $sasl.password_file -}}
{{- fail (printf "the password is given twice, by credentials.%s.kafkaUser and config.sinks.%s.kafka.sasl: give one of them" $sink $sink) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
