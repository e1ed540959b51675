{{/* Names, labels and what every pod of the chart has in common. */}}

{{- define "relay.name" -}}
{{- if contains "relay" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-relay" .Release.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{/* Of list $ component: the labels by which a Service or a Deployment finds its pods. They can't be changed later. */}}
{{- define "relay.selector" -}}
app.kubernetes.io/name: relay
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "relay.labels" -}}
{{ include "relay.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ printf "%s-%s" (index . 0).Chart.Name (index . 0).Chart.Version }}
{{- end }}

{{- define "relay.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- define "relay.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "relay.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "relay.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "relay.probes" -}}
startupProbe:
  httpGet: { path: /livez, port: health }
  periodSeconds: 2
  failureThreshold: 60
readinessProbe:
  httpGet: { path: /readyz, port: health }
  periodSeconds: 5
  failureThreshold: 2
livenessProbe:
  httpGet: { path: /livez, port: health }
  periodSeconds: 10
  failureThreshold: 6
{{- end }}

{{/* Where a pod may go: nodeSelector, tolerations and affinity of a map. */}}
{{- define "relay.placement" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* A duration such as 90s, 3m or 1h in seconds. */}}
{{- define "relay.seconds" -}}
{{- $number := regexFind "^[0-9]+" . | int -}}
{{- if hasSuffix "h" . }}{{ mul $number 3600 }}{{ else if hasSuffix "m" . }}{{ mul $number 60 }}{{ else }}{{ $number }}{{ end -}}
{{- end }}

{{/* Seconds until the server's pod is killed. */}}
{{- define "relay.serverGrace" -}}
{{- $server := .Values.server -}}
{{- if $server.grace }}{{ $server.grace | int }}{{ else }}{{ add (include "relay.seconds" $server.drainDelay) (include "relay.seconds" $server.drain) 30 }}{{ end -}}
{{- end }}

{{- define "relay.workerGrace" -}}
{{- if .grace }}{{ .grace | int }}{{ else }}{{ add (include "relay.seconds" .drain) 15 }}{{ end -}}
{{- end }}

{{/* Of list $ name: a worker with its defaults, as JSON. */}}
{{- define "relay.worker" -}}
{{- $root := index . 0 -}}
{{- mergeOverwrite (deepCopy $root.Values.worker) (deepCopy (index $root.Values.workers (index . 1) | default dict)) | toJson -}}
{{- end }}

{{- define "relay.serverAccount" -}}
{{ .Values.server.serviceAccount.name | default (include "relay.name" .) }}
{{- end }}

{{/* The queue's name without its share. */}}
{{- define "relay.queueName" -}}
{{ regexReplaceAll "=.*$" . "" }}
{{- end }}
