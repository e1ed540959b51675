{{/* A pod that examines a server once: of list $ args server. */}}
{{- define "relay.testPod" -}}
{{- $values := (index . 0).Values -}}
restartPolicy: Never
automountServiceAccountToken: false
{{- include "relay.pullSecrets" (index . 0) }}
securityContext:
  {{- include "relay.podSecurity" (index . 0) | nindent 2 }}
containers:
  - name: doctor
    image: {{ include "relay.image" (index . 0) }}
    imagePullPolicy: {{ $values.image.pullPolicy }}
    args: {{ index . 1 | toJson }}
    env:
      - name: RELAY_SERVER
        value: {{ index . 2 }}
      {{- if $values.tests.ca.secret }}
      - name: SSL_CERT_FILE
        value: /etc/relay/ca/{{ $values.tests.ca.key }}
      {{- end }}
      {{- if $values.tests.apiKey.secret }}
      - name: RELAY_API_KEY
        valueFrom:
          secretKeyRef:
            name: {{ $values.tests.apiKey.secret }}
            key: {{ $values.tests.apiKey.key }}
      {{- end }}
    resources:
      requests: { cpu: 50m, memory: 64Mi }
      limits: { memory: 128Mi }
    securityContext:
      {{- include "relay.containerSecurity" (index . 0) | nindent 6 }}
    {{- if $values.tests.ca.secret }}
    volumeMounts:
      - name: ca
        mountPath: /etc/relay/ca
        readOnly: true
    {{- end }}
{{- if $values.tests.ca.secret }}
volumes:
  {{- include "relay.secretVolume" (list "ca" $values.tests.ca.secret) | nindent 2 }}
{{- end }}
{{- end }}
