{{/* Files of secrets and config maps in a pod: of list $ parts (settings, tls, access, scaler, admin). */}}

{{- define "relay.mounts" -}}
{{- $root := index . 0 -}}
{{- $parts := index . 1 -}}
- name: settings
  mountPath: /etc/relay/settings
  readOnly: true
{{- if and (has "tls" $parts) $root.Values.tls.secret }}
- name: tls
  mountPath: /etc/relay/tls
  readOnly: true
{{- end }}
{{- if has "access" $parts }}
{{- if $root.Values.access.secret }}
- name: access
  mountPath: /etc/relay/access
  readOnly: true
{{- end }}
{{- if $root.Values.access.issuers }}
- name: issuers
  mountPath: /etc/relay/issuers
  readOnly: true
{{- end }}
{{- range $root.Values.tls.clientAuthorities }}
- name: authority-{{ .name }}
  mountPath: /etc/relay/authorities/{{ .name }}
  readOnly: true
{{- end }}
{{- range $root.Values.admin.tokens }}
- name: admin-{{ .name }}
  mountPath: /etc/relay/admin/{{ .name }}
  readOnly: true
{{- end }}
{{- end }}
{{- if and (has "scaler" $parts) $root.Values.scaler.client.secret }}
- name: scaler
  mountPath: /etc/relay/scaler
  readOnly: true
{{- end }}
{{- range $root.Values.files }}
- name: file-{{ .name }}
  mountPath: {{ .mountPath }}
  readOnly: true
{{- end }}
{{- end }}

{{- define "relay.secretVolume" -}}
- name: {{ index . 0 }}
  secret:
    secretName: {{ index . 1 }}
    defaultMode: 0440
{{- end }}

{{- define "relay.volumes" -}}
{{- $root := index . 0 -}}
{{- $parts := index . 1 -}}
- name: settings
  configMap:
    name: {{ index . 2 }}
{{- if and (has "tls" $parts) $root.Values.tls.secret }}
{{ include "relay.secretVolume" (list "tls" $root.Values.tls.secret) }}
{{- end }}
{{- if has "access" $parts }}
{{- with $root.Values.access.secret }}
{{ include "relay.secretVolume" (list "access" .) }}
{{- end }}
{{- with $root.Values.access.issuers }}
{{ include "relay.secretVolume" (list "issuers" .) }}
{{- end }}
{{- range $root.Values.tls.clientAuthorities }}
{{ include "relay.secretVolume" (list (printf "authority-%s" .name) .secret) }}
{{- end }}
{{- range $root.Values.admin.tokens }}
{{ include "relay.secretVolume" (list (printf "admin-%s" .name) .secret) }}
{{- end }}
{{- end }}
{{- if and (has "scaler" $parts) $root.Values.scaler.client.secret }}
- name: scaler
  secret:
    secretName: {{ $root.Values.scaler.client.secret }}
    defaultMode: 0440
    # KEDA's own key is not for relay.
    items:
      - { key: ca.crt, path: ca.crt }
{{- end }}
{{- range $root.Values.files }}
{{- if .secret }}
{{ include "relay.secretVolume" (list (printf "file-%s" .name) .secret) }}
{{- else }}
- name: file-{{ .name }}
  configMap:
    name: {{ .configMap }}
{{- end }}
{{- end }}
{{- end }}
