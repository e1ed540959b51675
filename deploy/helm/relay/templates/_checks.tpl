{{/* Values that contradict each other, which the schema can't find. Each is refused with a sentence that says what to do. */}}
{{- define "relay.checks" -}}
{{- $values := .Values -}}
{{- $delay := include "relay.seconds" $values.server.drainDelay | int -}}
{{- $drain := include "relay.seconds" $values.server.drain | int -}}
{{- if not $values.image.repository }}{{ fail "image.repository: name the registry and repository that deploy/image was pushed to" }}{{ end -}}
{{- if le (include "relay.serverGrace" . | int) (add $delay $drain | int) }}{{ fail (printf "server.grace: %ss end before server.drainDelay and server.drain are over (%d s): give more, or leave it out" (include "relay.serverGrace" .) (add $delay $drain)) }}{{ end -}}
{{- $settings := $values.settings -}}
{{- $brokers := list -}}
{{- if $settings.nats }}{{ $brokers = append $brokers "settings.nats" }}{{ end -}}
{{- if and $settings.sqs $settings.sqs.enabled }}{{ $brokers = append $brokers "settings.sqs" }}{{ end -}}
{{- if $values.persistence.enabled }}{{ $brokers = append $brokers "persistence" }}{{ end -}}
{{- if ne (len $brokers) 1 }}{{ fail (printf "jobs are kept in one place: give one of settings.nats, settings.sqs.enabled and persistence.enabled, not %s" (join " and " $brokers | default "none")) }}{{ end -}}
{{- if and $values.persistence.enabled (eq $values.scaler.kind "separate") }}{{ fail "scaler.kind: `separate` can't read a store in the server's volume: say `server`" }}{{ end -}}
{{- if and $values.persistence.enabled $values.provision.enabled }}{{ fail "provision.enabled: there is no broker to provision: with persistence.enabled the server makes its queues itself; leave it out" }}{{ end -}}
{{- range $table := list "listen" "listener" "admin" "admin_token" "client_ca" "scaler" "store" "worker" "access" -}}
{{- if hasKey $settings $table }}{{ fail (printf "settings.%s: the chart writes this table from its own values; see values.yaml" $table) }}{{ end -}}
{{- end -}}
{{- /* Ports of one pod, by the values that name them. */ -}}
{{- $ports := dict (toString $values.health.port) "health.port" -}}
{{- $taken := list (list (toString $values.admin.port) "admin.port") -}}
{{- if ne $values.scaler.kind "none" }}{{ $taken = append $taken (list (toString $values.scaler.port) "scaler.port") }}{{ end -}}
{{- range $name, $listener := $values.listeners -}}
{{- if $listener.enabled -}}
{{- $taken = append $taken (list (toString $listener.port) (printf "listeners.%s.port" $name)) -}}
{{- if and (eq $listener.tls "here") (not $values.tls.secret) }}{{ fail (printf "listeners.%s.tls: `here` needs a certificate in tls.secret; behind a mesh that ends TLS say `terminated-in-front`" $name) }}{{ end -}}
{{- if and (has ($listener.clientAuth | default "none") (list "optional" "required")) (not $values.tls.clientAuthorities) }}{{ fail (printf "listeners.%s.clientAuth: `%s` needs tls.clientAuthorities" $name $listener.clientAuth) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- if and $values.admin.tokens (eq $values.admin.tls "here") (not $values.tls.secret) }}{{ fail "admin.tls: `here` needs a certificate in tls.secret; behind a mesh that ends TLS say `terminated-in-front`" }}{{ end -}}
{{- range $taken -}}
{{- if hasKey $ports (first .) }}{{ fail (printf "%s: port %s is taken by %s: give each its own" (last .) (first .) (get $ports (first .))) }}{{ end -}}
{{- $_ := set $ports (first .) (last .) -}}
{{- end -}}
{{- $nlb := $values.listeners.nlb -}}
{{- if and $nlb.enabled (not $nlb.trusted) }}{{ fail "listeners.nlb.trusted: name the load balancer's own addresses, such as 10.0.1.7/32; a header from others is not believed" }}{{ end -}}
{{- if and (ne $values.loadBalancer.kind "none") (not $nlb.enabled) }}{{ fail "loadBalancer.kind: the load balancer writes a PROXY header, for which listeners.nlb has to be enabled" }}{{ end -}}
{{- if and (eq $values.loadBalancer.kind "binding") (not $values.loadBalancer.targetGroupARN) }}{{ fail "loadBalancer.targetGroupARN: give output target_group_arns[\"data\"] of deploy/terraform/provider" }}{{ end -}}
{{- if eq $values.loadBalancer.kind "service" -}}
{{- range $key := list "name" "subnets" "addresses" "securityGroups" -}}
{{- if not (index $values.loadBalancer $key) }}{{ fail (printf "loadBalancer.%s: it has to be given with the kind `service`, because it can't be changed later" $key) }}{{ end -}}
{{- end -}}
{{- if ne (len $values.loadBalancer.subnets) (len $values.loadBalancer.addresses) }}{{ fail "loadBalancer.addresses: give one address of each subnet" }}{{ end -}}
{{- range $values.loadBalancer.addresses -}}
{{- if not (or (has . $nlb.trusted) (has (printf "%s/32" .) $nlb.trusted)) }}{{ fail (printf "listeners.nlb.trusted: %s of loadBalancer.addresses is not there, and its connections would be closed" .) }}{{ end -}}
{{- end -}}
{{- range $key, $_ := $values.loadBalancer.annotations -}}
{{- if hasSuffix "aws-load-balancer-proxy-protocol" $key }}{{ fail "loadBalancer.annotations: aws-load-balancer-proxy-protocol is for every port; the chart names the one that reads the header" }}{{ end -}}
{{- end -}}
{{- end -}}
{{- if not (and $values.access.secret (or $values.access.keys $values.access.clients)) }}{{ fail "access.secret: name a secret with keys.toml (`relay keys new`), with an identity file, or both" }}{{ end -}}
{{- if ne $values.scaler.kind "none" -}}
{{- if and (eq $values.scaler.tls "here") (not (and $values.tls.secret $values.scaler.ca.secret)) }}{{ fail "scaler.tls: `here` needs a certificate in tls.secret, and its authority in scaler.ca.secret for KEDA; or say `none`" }}{{ end -}}
{{- if and (eq $values.scaler.tls "none") (not $values.networkPolicy.enabled) }}{{ fail "scaler.tls: with `none` only networkPolicy keeps others than KEDA away: enable it, or say `here`" }}{{ end -}}
{{- if and $values.scaler.client.secret (ne $values.scaler.tls "here") }}{{ fail "scaler.client: KEDA shows its certificate over TLS alone: say scaler.tls `here`" }}{{ end -}}
{{- end -}}
{{- $scrapers := list -}}
{{- range $values.admin.tokens -}}
{{- if has "metrics" .rights }}{{ $scrapers = append $scrapers .name }}{{ end -}}
{{- end -}}
{{- if and $values.monitoring.serviceMonitor (not (has $values.monitoring.token $scrapers)) }}{{ fail (printf "monitoring.token: no token `%s` with the right `metrics` is in admin.tokens" $values.monitoring.token) }}{{ end -}}
{{- if and $values.issuerKeys.enabled (not (and $values.issuerKeys.image $values.issuerKeys.kubeconfigSecret $values.access.issuers)) }}{{ fail "issuerKeys: give image and kubeconfigSecret, and in access.issuers the secret that it writes" }}{{ end -}}
{{- $known := list -}}
{{- range $settings.queue }}{{ $known = append $known .name }}{{ end -}}
{{- range $name, $_ := $values.workers -}}
{{- include "relay.workerChecks" (list $ $name (include "relay.worker" (list $ $name) | fromJson) $known $scrapers) -}}
{{- end -}}
{{- end }}

{{/* Of list $ name worker queues scrapers. */}}
{{- define "relay.workerChecks" -}}
{{- $values := (index . 0).Values -}}
{{- $at := printf "workers.%s" (index . 1) -}}
{{- $worker := index . 2 -}}
{{- $known := index . 3 -}}
{{- $scrapers := index . 4 -}}
{{- $scaling := $worker.autoscaling -}}
{{- if not (or $worker.command $worker.http) }}{{ fail (printf "%s: give `command`, or `http` with a sidecar" $at) }}{{ end -}}
{{- if and $worker.command $worker.http }}{{ fail (printf "%s: a job goes to `command` or to `http`, not to both" $at) }}{{ end -}}
{{- if le (include "relay.workerGrace" $worker | int) (include "relay.seconds" $worker.drain | int) }}{{ fail (printf "%s.grace: %ss end before its drain of %s is over: give more, or leave it out" $at (include "relay.workerGrace" $worker) $worker.drain) }}{{ end -}}
{{- range $worker.queues -}}
{{- if and $known (not (has (include "relay.queueName" .) $known)) }}{{ fail (printf "%s.queues: settings.queue has no `%s`" $at (include "relay.queueName" .)) }}{{ end -}}
{{- end -}}
{{- if and $values.persistence.enabled (not $values.listeners.workers.enabled) }}{{ fail (printf "%s: with persistence.enabled workers ask the server: enable listeners.workers" $at) }}{{ end -}}
{{- if and $values.listeners.workers.enabled (not $worker.key.secret) }}{{ fail (printf "%s.key.secret: a worker that asks the server needs a key (`relay keys new --role worker`)" $at) }}{{ end -}}
{{- if and $worker.key.secret (not $values.listeners.workers.enabled) }}{{ fail (printf "%s.key.secret: the worker asks the broker itself, which takes no key of relay: leave it out, or enable listeners.workers" $at) }}{{ end -}}
{{- if and $worker.ca.secret (not (and $values.listeners.workers.enabled (eq $values.listeners.workers.tls "here"))) }}{{ fail (printf "%s.ca: the worker asks no server over TLS: see listeners.workers" $at) }}{{ end -}}
{{- if and $worker.doNotDisrupt (not $worker.kubernetes) }}{{ fail (printf "%s.doNotDisrupt: the worker tells it to Kubernetes: say kubernetes = true as well" $at) }}{{ end -}}
{{- if ne $scaling.kind "none" -}}
{{- if not (kindIs "invalid" $worker.replicas) }}{{ fail (printf "%s.replicas: the autoscaler sets it, and each upgrade would undo that: leave it out" $at) }}{{ end -}}
{{- if gt ($scaling.min | int) ($scaling.max | int) }}{{ fail (printf "%s.autoscaling.min: it is more than max" $at) }}{{ end -}}
{{- if lt ($scaling.max | int) 1 }}{{ fail (printf "%s.autoscaling.max: at least 1" $at) }}{{ end -}}
{{- end -}}
{{- if and (eq $scaling.kind "hpa") (lt ($scaling.min | int) 1) (semverCompare "<1.37.0-0" (index . 0).Capabilities.KubeVersion.Version) }}{{ fail (printf "%s.autoscaling.min: an HPA scales to 0 from Kubernetes 1.37 on: say 1, or use KEDA" $at) }}{{ end -}}
{{- if and (or (eq $scaling.kind "hpa") (and (eq $scaling.kind "keda") (eq $scaling.trigger "prometheus"))) (not $scrapers) }}{{ fail (printf "%s.autoscaling: it goes by a gauge of relay, which nobody may read: give admin.tokens one with the right `metrics`" $at) }}{{ end -}}
{{- if eq $scaling.kind "keda" -}}
{{- if and (eq $scaling.trigger "relay") (eq $values.scaler.kind "none") }}{{ fail (printf "%s.autoscaling.trigger: nobody answers KEDA: say scaler.kind `server` or `separate`, or choose another trigger" $at) }}{{ end -}}
{{- if eq $scaling.trigger "nats-jetstream" -}}
{{- if not (and $values.settings.nats $scaling.nats.monitoring) }}{{ fail (printf "%s.autoscaling.nats.monitoring: the trigger nats-jetstream reads a NATS server's monitoring port, HOST:8222" $at) }}{{ end -}}
{{- range $queue := $values.settings.queue -}}
{{- range $worker.queues -}}
{{- if and (eq (include "relay.queueName" .) $queue.name) (ne (toString $queue.fair) "false") }}{{ fail (printf "%s.autoscaling.trigger: nats-jetstream reads one line, and queue `%s` has one of each client: say fair = false there, or use the trigger relay" $at $queue.name) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and (eq $scaling.trigger "aws-sqs-queue") (not (and $values.settings.sqs $values.settings.sqs.enabled)) }}{{ fail (printf "%s.autoscaling.trigger: aws-sqs-queue reads a queue of SQS, and jobs are not kept there (settings.sqs): use the trigger relay" $at) }}{{ end -}}
{{- if and (eq $scaling.trigger "aws-sqs-queue") (not (and $scaling.sqs.region $scaling.sqs.prefix)) }}{{ fail (printf "%s.autoscaling.sqs: the trigger aws-sqs-queue needs region and prefix" $at) }}{{ end -}}
{{- if and (eq $scaling.trigger "prometheus") (not $scaling.prometheus.address) }}{{ fail (printf "%s.autoscaling.prometheus.address: the trigger prometheus needs http://HOST:9090" $at) }}{{ end -}}
{{- end -}}
{{- end }}
