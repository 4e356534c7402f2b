{{/* The name of all objects: the release's, with the chart's if it isn't in it. */}}
{{- define "hubcache.name" -}}
{{- if contains "hubcache" .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-hubcache" .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "hubcache.selector" -}}
app.kubernetes.io/name: hubcache
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "hubcache.labels" -}}
{{ include "hubcache.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/* The settings file. What the chart decides wins over `settings`. */}}
{{- define "hubcache.settings" -}}
{{- $fixed := dict
  "listen" (list ":5000")
  "admin" (dict "listen" (list "127.0.0.1:5001"))
  "data_dir" "/var/lib/hubcache"
  "metrics" (dict "listen" (list ":5002"))
  "budget" .Values.budget -}}
{{- if .Values.account.existingSecret -}}
{{- $_ := set $fixed "upstream" (dict "username" .Values.account.username "password_file" "/run/secrets/hubcache/account") -}}
{{- end -}}
{{- $registries := dict -}}
{{- range $name, $given := .Values.registries -}}
{{- $registry := deepCopy (default dict $given) -}}
{{- with $registry.password_file -}}
{{- if not (hasKey $.Values.tokens .) -}}{{- fail (printf "registries.%s: password_file is %q, and tokens has no such item" $name .) -}}{{- end -}}
{{- $_ := set $registry "password_file" (printf "/run/secrets/hubcache/tokens/%s" .) -}}
{{- end -}}
{{- $_ := set $registries $name $registry -}}
{{- end -}}
{{- with .Values.shared -}}{{- $_ := set $fixed "shared" . -}}{{- end -}}
{{- if $registries -}}{{- $_ := set $fixed "registries" $registries -}}{{- end -}}
{{- toYaml (mergeOverwrite (deepCopy .Values.settings) $fixed) -}}
{{- end -}}

{{/* The URL of the cache for containerd. HOST_IP stands for the node's address. */}}
{{- define "hubcache.url" -}}
{{- if .Values.service.nodePort -}}
http://HOST_IP:{{ .Values.service.nodePort }}
{{- else if .Values.service.clusterIP -}}
{{- $ip := .Values.service.clusterIP -}}
http://{{ if contains ":" $ip }}[{{ $ip }}]{{ else }}{{ $ip }}{{ end }}:{{ .Values.service.port }}
{{- else -}}
{{- fail "containerd.enabled needs service.clusterIP or service.nodePort: nodes don't use the cluster's DNS" -}}
{{- end -}}
{{- end -}}
