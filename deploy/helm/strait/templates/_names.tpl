{{/* (root, component): labels of everything the chart makes. */}}
{{- define "strait.labels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ index . 1 }}
app.kubernetes.io/part-of: strait
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- end -}}

{{/* (root, component, own): labels of pods. They do not change with the chart's version: that alone must restart nothing. */}}
{{- define "strait.podLabels" -}}
app.kubernetes.io/name: {{ index . 1 }}
app.kubernetes.io/part-of: strait
{{- with (index . 2).podLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/*
(root, own, prometheus, others): a change of the configuration restarts the pods, because it is read once; not one of the parts that
only other components read.
*/}}
{{- define "strait.podAnnotations" -}}
{{- $config := include "strait.resolve" (index . 0) | fromJson -}}
{{- range index . 3 }}{{ $_ := unset $config . }}{{ end -}}
checksum/config: {{ $config | toYaml | sha256sum }}
{{- with index . 2 }}
{{- if .enabled }}
prometheus.io/scrape: "true"
prometheus.io/port: {{ int .port | quote }}
{{- end }}
{{- end }}
{{- with (index . 1).podAnnotations }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "strait.image" -}}
{{ printf "%s:%s" .Values.image.repository (toString (.Values.image.tag | default .Chart.AppVersion)) }}
{{- end -}}

{{/* (prometheus, path): the kubelet asks on the node's loopback, which no policy and no route can take away. */}}
{{- define "strait.probe" -}}
httpGet:
  host: 127.0.0.1
  port: {{ int (index . 0).port }}
  path: {{ index . 1 }}
{{- end -}}

{{/* Where agents and relay have ca.crt, tls.crt and tls.key. */}}
{{- define "strait.tlsDir" -}}
/etc/strait-tls
{{- end -}}

{{/* (address): its port. */}}
{{- define "strait.port" -}}
{{ regexFind "[0-9]+$" . }}
{{- end -}}
