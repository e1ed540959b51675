{{/* relay's settings file, of the values. TOML takes JSON's texts, numbers and lists as they are, and not its objects. */}}

{{/* Of list path map: the map as a table of TOML, with the tables in it below. */}}
{{- define "relay.table" -}}
{{- $path := index . 0 -}}
{{- $map := index . 1 -}}
{{- range $key, $value := $map }}
{{- if not (or (kindIs "map" $value) (kindIs "invalid" $value) (and (kindIs "slice" $value) $value (kindIs "map" (first $value)))) }}
{{ $key }} = {{ toJson $value }}
{{- end }}
{{- end }}
{{- range $key, $value := $map }}
{{- $name := $key }}
{{- if $path }}{{ $name = printf "%s.%s" $path $key }}{{ end }}
{{- if kindIs "map" $value }}

[{{ $name }}]
{{- include "relay.table" (list $name $value) }}
{{- else if and (kindIs "slice" $value) $value (kindIs "map" (first $value)) }}
{{- range $value }}

[[{{ $name }}]]
{{- include "relay.table" (list $name .) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* The tables that say where jobs are and how to get there, as JSON. */}}
{{- define "relay.broker" -}}
{{- pick .Values.settings "nats" "sqs" "telemetry" "log" | toJson -}}
{{- end }}

{{- define "relay.serverSettings" -}}
{{- $values := .Values -}}
{{- $defaults := dict "log" (dict "format" "json") "limits" (dict "fit_memory" true) -}}
{{- $made := dict -}}
{{- $_ := set $made "listen" (dict "drain_delay" $values.server.drainDelay "drain" $values.server.drain) -}}
{{- $listeners := list -}}
{{- range $name, $listener := $values.listeners -}}
{{- if $listener.enabled -}}
{{- $one := dict "name" $name "address" (printf "0.0.0.0:%d" ($listener.port | int)) "protocol" (ternary "worker" "http" (eq $name "workers")) "tls" (eq $listener.tls "here" | ternary "on" $listener.tls) -}}
{{- if ne ($listener.clientAuth | default "none") "none" -}}
{{- $_ := set $one "client_auth" $listener.clientAuth -}}
{{- end -}}
{{- if eq $name "nlb" -}}
{{- $_ := set $one "proxy" "required" -}}
{{- $_ := set $one "trusted" $listener.trusted -}}
{{- end -}}
{{- $listeners = append $listeners $one -}}
{{- end -}}
{{- end -}}
{{- $_ := set $made "listener" $listeners -}}
{{- if $values.tls.secret -}}
{{- $_ := set $made.listen "tls_cert" "/etc/relay/tls/tls.crt" -}}
{{- $_ := set $made.listen "tls_key" "/etc/relay/tls/tls.key" -}}
{{- end -}}
{{- $authorities := list -}}
{{- range $values.tls.clientAuthorities -}}
{{- $one := dict "file" (printf "/etc/relay/authorities/%s/%s" .name .key) "names" .names -}}
{{- if .crlKey -}}
{{- $_ := set $one "crl" (printf "/etc/relay/authorities/%s/%s" .name .crlKey) -}}
{{- end -}}
{{- $authorities = append $authorities $one -}}
{{- end -}}
{{- if $authorities -}}
{{- $_ := set $made "client_ca" $authorities -}}
{{- end -}}
{{- $access := dict -}}
{{- if $values.access.secret -}}
{{- with $values.access.keys -}}
{{- $_ := set $access "keys" (printf "/etc/relay/access/%s" .) -}}
{{- end -}}
{{- with $values.access.clients -}}
{{- $_ := set $access "clients" (printf "/etc/relay/access/%s" .) -}}
{{- end -}}
{{- end -}}
{{- $_ := set $made "access" $access -}}
{{- $admin := dict "health" (printf "0.0.0.0:%d" ($values.health.port | int)) "listen" (printf "127.0.0.1:%d" ($values.admin.port | int)) -}}
{{- if $values.listeners.nlb.enabled -}}
{{- $_ := set $admin "health_proxy" "accept" -}}
{{- end -}}
{{- $tokens := list -}}
{{- range $values.admin.tokens -}}
{{- $_ := set $admin "listen" (printf "0.0.0.0:%d" ($values.admin.port | int)) -}}
{{- $_ := set $admin "tls" (ternary "on" "terminated-in-front" (eq $values.admin.tls "here")) -}}
{{- $tokens = append $tokens (dict "name" .name "rights" .rights "token_file" (printf "/etc/relay/admin/%s/%s" .name .key)) -}}
{{- end -}}
{{- $_ := set $made "admin" $admin -}}
{{- if $tokens -}}
{{- $_ := set $made "admin_token" $tokens -}}
{{- end -}}
{{- if eq $values.scaler.kind "server" -}}
{{- $_ := set $made "scaler" (include "relay.scalerTable" . | fromJson) -}}
{{- end -}}
{{- if $values.persistence.enabled -}}
{{- $_ := set $made "store" (dict "data" "/var/lib/relay/data") -}}
{{- end -}}
{{- include "relay.table" (list "" (mergeOverwrite $defaults (deepCopy $values.settings) $made)) | trim }}
{{- end }}

{{- define "relay.scalerTable" -}}
{{- $scaler := dict "listen" (printf "0.0.0.0:%d" (.Values.scaler.port | int)) -}}
{{- if ne .Values.scaler.tls "here" -}}
{{- $_ := set $scaler "tls" "off" -}}
{{- end -}}
{{- if .Values.scaler.client.secret -}}
{{- $_ := set $scaler "client_ca" "/etc/relay/scaler/ca.crt" -}}
{{- end -}}
{{- $scaler | toJson -}}
{{- end }}

{{/* Of a Deployment of its own, which answers KEDA and health checks, and has no door for clients. */}}
{{- define "relay.scalerSettings" -}}
{{- $made := dict "admin" (dict "health" (printf "0.0.0.0:%d" (.Values.health.port | int))) "scaler" (include "relay.scalerTable" . | fromJson) -}}
{{- if and .Values.tls.secret (eq .Values.scaler.tls "here") -}}
{{- $_ := set $made "listen" (dict "tls_cert" "/etc/relay/tls/tls.crt" "tls_key" "/etc/relay/tls/tls.key") -}}
{{- end -}}
{{- include "relay.table" (list "" (mergeOverwrite (dict "log" (dict "format" "json")) (omit (include "relay.broker" . | fromJson) "telemetry") $made)) | trim }}
{{- end }}

{{/* Of list $ worker. */}}
{{- define "relay.workerSettings" -}}
{{- $root := index . 0 -}}
{{- $worker := index . 1 -}}
{{- $made := dict "admin" (dict "health" (printf "0.0.0.0:%d" ($root.Values.health.port | int))) -}}
{{- $work := dict "queues" $worker.queues "slots" ($worker.slots | int) "drain" $worker.drain -}}
{{- range $key := list "command" "http" "timeout" -}}
{{- with index $worker $key -}}
{{- $_ := set $work $key . -}}
{{- end -}}
{{- end -}}
{{- if $root.Values.listeners.workers.enabled -}}
{{- $_ := set $work "connect" (printf "%s%s-workers.%s.svc:%d" (ternary "tls://" "" (eq $root.Values.listeners.workers.tls "here")) (include "relay.name" $root) $root.Release.Namespace ($root.Values.listeners.workers.port | int)) -}}
{{- end -}}
{{- if $worker.kubernetes -}}
{{- $_ := set $work "kubernetes" true -}}
{{- end -}}
{{- if $worker.doNotDisrupt -}}
{{- $_ := set $work "do_not_disrupt" true -}}
{{- end -}}
{{- if $worker.ca.secret -}}
{{- $_ := set $work "ca" (printf "/etc/relay/ca/%s" $worker.ca.key) -}}
{{- end -}}
{{- if $worker.key.secret -}}
{{- $_ := set $work "key_file" (printf "/etc/relay/key/%s" $worker.key.key) -}}
{{- end -}}
{{- $_ := set $made "worker" $work -}}
{{- $tables := include "relay.broker" $root | fromJson -}}
{{- if $root.Values.listeners.workers.enabled -}}
{{- $tables = omit $tables "nats" "sqs" -}}
{{- end -}}
{{- include "relay.table" (list "" (mergeOverwrite (dict "log" (dict "format" "json")) $tables $made)) | trim }}
{{- end }}

{{/* For `relay provision`: the broker and what is to be there. */}}
{{- define "relay.provisionSettings" -}}
{{- include "relay.table" (list "" (pick .Values.settings "nats" "sqs" "streams" "queue_defaults" "queue" "log")) | trim }}
{{- end }}
