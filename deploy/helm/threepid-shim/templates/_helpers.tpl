{{/* What the templates share. */}}

{{- define "threepid-shim.name" -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "threepid-shim.selector" -}}
app.kubernetes.io/name: {{ eq .Values.variant "sidecar" | ternary "synapse" "threepid-shim" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "threepid-shim.labels" -}}
{{ include "threepid-shim.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- define "threepid-shim.image" -}}
{{- $image := .Values.image -}}
{{ $image.repository }}{{ if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag | default .Chart.AppVersion }}{{ end }}
{{- end -}}

{{- define "threepid-shim.secret" -}}
{{- .Values.existingSecret | default (include "threepid-shim.name" .) -}}
{{- end -}}

{{/* threepid-shim.toml: what the pod wants, and over it what the operator wrote. */}}
{{- define "threepid-shim.toml" -}}
{{- $standalone := eq .Values.variant "standalone" -}}
{{- $several := gt (int .Values.replicas) 1 -}}
{{- $kind := dig "store" "kind" "memory" .Values.config -}}
{{- if and $standalone $several (ne $kind "redis") -}}
{{- fail "several replicas share their sessions in Redis alone: set config.store.kind to redis and config.store.url, or replicas to 1" -}}
{{- end -}}
{{- if and $standalone (not (dig "homeserver" "url" "" .Values.config)) -}}
{{- fail "config.homeserver.url is required with variant standalone" -}}
{{- end -}}
{{- $pod := dict
  "listen" (dict "clients" (list "0.0.0.0:8080") "identity" (list ($standalone | ternary "0.0.0.0:8091" "127.0.0.1:8091")) "admin" (list "0.0.0.0:9091"))
  "shutdown" (dict "delay" (printf "%ds" (int .Values.drainDelay)) "grace" (printf "%ds" (int .Values.drainGrace)))
  "log" (dict "format" "json") -}}
{{- if $standalone -}}
{{- $_ := set $pod "identity" (dict "name" (printf "%s-identity:8091" (include "threepid-shim.name" .))) -}}
{{- if .Values.identitySecret -}}
{{- $_ := set $pod.identity "tls" (dict "certificate" "/run/secrets/threepid-shim-identity/tls.crt" "private_key" "/run/secrets/threepid-shim-identity/tls.key") -}}
{{- end -}}
{{- else -}}
{{- $_ := set $pod "homeserver" (dict "url" "http://127.0.0.1:8008") -}}
{{- $_ := set $pod "identity" (dict "name" "localhost:8091") -}}
{{- end -}}
{{- mergeOverwrite $pod (deepCopy .Values.config) | toToml -}}
{{- end -}}

{{/* The container, alike in both variants but for what its caller adds. */}}
{{- define "threepid-shim.container" -}}
name: threepid-shim
image: {{ include "threepid-shim.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args: [--config, /etc/threepid-shim/threepid-shim.toml]
# It starts before the homeserver: nothing here may need the homeserver.
startupProbe:
  httpGet: {path: /healthz, port: shim-admin}
  periodSeconds: 1
  failureThreshold: 60
# Ready is who reaches the homeserver and is not about to end.
readinessProbe:
  httpGet: {path: /readyz, port: shim-admin}
  periodSeconds: 5
  timeoutSeconds: 6
  failureThreshold: 2
# A restart helps the shim alone, so this looks at the shim alone.
livenessProbe:
  httpGet: {path: /healthz, port: shim-admin}
  periodSeconds: 10
  timeoutSeconds: 3
  failureThreshold: 3
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  readOnlyRootFilesystem: true
  allowPrivilegeEscalation: false
  capabilities: {drop: [ALL]}
  seccompProfile: {type: RuntimeDefault}
resources: {{- toYaml .Values.resources | nindent 2 }}
{{- end -}}

{{- define "threepid-shim.mounts" -}}
# Whole folders: what is mounted as one file (subPath) never changes, and no reload would see it.
- {name: threepid-shim-config, mountPath: /etc/threepid-shim, readOnly: true}
- {name: threepid-shim-secrets, mountPath: /run/secrets/threepid-shim, readOnly: true}
- {name: threepid-shim-state, mountPath: /var/lib/threepid-shim}
{{- if eq .Values.variant "sidecar" }}
- {name: threepid-shim-ca, mountPath: /var/cache/threepid-shim}
{{- end }}
{{- end -}}

{{- define "threepid-shim.volumes" -}}
- name: threepid-shim-config
  configMap: {name: {{ include "threepid-shim.name" . }}}
- name: threepid-shim-secrets
  # In Synapse's pod readable for all within this one mount: an fsGroup would also be given to Synapse's media.
  secret: {secretName: {{ include "threepid-shim.secret" . }}, defaultMode: {{ eq .Values.variant "sidecar" | ternary 0444 0440 }}}
- name: threepid-shim-state
  emptyDir: {sizeLimit: 128Mi}
{{- if eq .Values.variant "sidecar" }}
- name: threepid-shim-ca
  emptyDir: {sizeLimit: 4Mi}
{{- end }}
{{- end -}}

{{- define "threepid-shim.podMetadata" -}}
labels:
  {{- include "threepid-shim.selector" . | nindent 2 }}
  {{- with .Values.podLabels }}{{ toYaml . | nindent 2 }}{{ end }}
{{- if or .Values.restartOnChange .Values.podAnnotations }}
annotations:
  {{- if .Values.restartOnChange }}
  checksum/config: {{ include "threepid-shim.toml" . | sha256sum }}
  {{- end }}
  {{- with .Values.podAnnotations }}{{ toYaml . | nindent 2 }}{{ end }}
{{- end }}
{{- end -}}

{{- define "threepid-shim.placement" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
