{{/* Labels that select a role's pods. Takes a dict of root and role. */}}
{{- define "bss.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .role }}
{{- end }}

{{- define "bss.labels" -}}
{{ include "bss.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{- define "bss.name" -}}
{{ printf "%s-%s" .root.Release.Name .role | trunc 52 | trimSuffix "-" }}
{{- end }}

{{/* What each role works with, and its command. */}}
{{- define "bss.roles" -}}
bridge: {command: bridge, kafka: true, mqtt: true, postgres: false}
processor: {command: process, kafka: true, mqtt: false, postgres: false}
publisher: {command: publish, kafka: true, mqtt: true, postgres: false}
sink: {command: sink, kafka: true, mqtt: false, postgres: true}
queries: {command: query, kafka: false, mqtt: true, postgres: true}
{{- if .Values.odoo.url }}
odoo: {command: odoo, kafka: true, mqtt: true, postgres: false}
{{- end }}
{{- end }}

{{- define "bss.checks" -}}
{{- $most := int .Values.partitions }}
{{- if gt (int .Values.roles.processor.replicas) $most }}
{{- fail (printf "roles.processor.replicas: %d: expected at most partitions, %d" (int .Values.roles.processor.replicas) $most) }}
{{- end }}
{{- if and (ne .Values.autoscaling.kind "none") (gt (int .Values.autoscaling.maxReplicas) $most) }}
{{- fail (printf "autoscaling.maxReplicas: %d: expected at most partitions, %d" (int .Values.autoscaling.maxReplicas) $most) }}
{{- end }}
{{- if gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas) }}
{{- fail (printf "autoscaling.minReplicas: %d: expected at most maxReplicas, %d" (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) }}
{{- end }}
{{- end }}

{{/* A pod of a role. Takes a dict of root, role, values and does. */}}
{{- define "bss.pod" -}}
{{- $values := .root.Values }}
{{- $sasl := hasPrefix "SASL" $values.kafka.securityProtocol }}
{{- $encrypted := or (and .does.kafka (hasSuffix "SSL" $values.kafka.securityProtocol)) (and .does.mqtt $values.mqtt.tls) }}
{{- $secrets := or (and .does.kafka $sasl) (and .does.mqtt $values.mqtt.secret) .does.postgres (eq .role "odoo") (and $encrypted $values.ca.secret) }}
metadata:
  labels:
    {{- include "bss.labels" . | nindent 4 }}
  annotations:
    checksum/config: {{ include (print .root.Template.BasePath "/config.yaml") .root | sha256sum }}
    {{- with $values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  automountServiceAccountToken: false
  serviceAccountName: {{ .root.Release.Name }}
  terminationGracePeriodSeconds: {{ $values.terminationGracePeriodSeconds }}
  {{- with $values.image.pullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 10001
    runAsGroup: 10001
    fsGroup: 10001
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile: {type: RuntimeDefault}
  {{- with $values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  topologySpreadConstraints:
    {{- range tuple "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
    - maxSkew: 1
      topologyKey: {{ . }}
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "bss.selector" $ | nindent 10 }}
    {{- end }}
  containers:
    - name: {{ .role }}
      image: "{{ $values.image.repository }}:{{ $values.image.tag | default .root.Chart.AppVersion }}"
      imagePullPolicy: {{ $values.image.pullPolicy }}
      # The pod's name tells the processes of a role apart, and a StatefulSet's stays over restarts.
      args: [{{ .does.command }}, --instance, $(POD_NAME)]
      env:
        - name: POD_NAME
          valueFrom: {fieldRef: {fieldPath: metadata.name}}
        {{- if and .does.kafka $sasl }}
        - name: BSS_LOG__KAFKA__USERNAME
          value: {{ index $values.kafka.users .role | quote }}
        - name: BSS_LOG__KAFKA__PASSWORD_FILE
          value: /etc/bss/secrets/kafka
        {{- else if $sasl }}
        # It does not touch Kafka, and has no user there.
        - name: BSS_LOG__KAFKA__SECURITY_PROTOCOL
          value: PLAINTEXT
        - name: BSS_LOG__KAFKA__CA_FILE
          value: ""
        {{- end }}
        {{- if and .does.mqtt $values.mqtt.secret }}
        - name: BSS_MQTT__USERNAME
          value: {{ index $values.mqtt.users .role | quote }}
        - name: BSS_MQTT__PASSWORD_FILE
          value: /etc/bss/secrets/mqtt
        {{- end }}
        {{- if eq .role "bridge" }}
        - name: BSS_MQTT__SHARED_GROUP
          value: {{ $values.mqtt.sharedGroup | quote }}
        {{- end }}
        {{- if .does.postgres }}
        - name: BSS_SINK__BACKEND
          value: postgres
        - name: BSS_SINK__DSN_FILE
          value: /etc/bss/secrets/dsn
        {{- end }}
        {{- if eq .role "odoo" }}
        - name: BSS_ODOO__URL
          value: {{ $values.odoo.url | quote }}
        - name: BSS_ODOO__DATABASE
          value: {{ $values.odoo.database | quote }}
        - name: BSS_ODOO__USERNAME
          value: {{ $values.odoo.username | quote }}
        - name: BSS_ODOO__API_KEY_FILE
          value: /etc/bss/secrets/odoo-key
        {{- end }}
        {{- range $name, $value := .values.settings }}
        - name: {{ $name }}
          value: {{ $value | quote }}
        {{- end }}
      envFrom:
        - configMapRef: {name: {{ .root.Release.Name }}-config}
      ports:
        - {name: http, containerPort: 9464}
      livenessProbe:
        httpGet: {path: /healthz, port: http}
        initialDelaySeconds: 30
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      # Of a processor, once its shards are restored: a rollout goes on then.
      readinessProbe:
        httpGet: {path: /readyz, port: http}
        periodSeconds: 5
        timeoutSeconds: 5
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities: {drop: [ALL]}
      resources:
        {{- toYaml .values.resources | nindent 8 }}
      volumeMounts:
        - {name: data, mountPath: /var/lib/bss}
        {{- if $secrets }}
        - {name: secrets, mountPath: /etc/bss/secrets, readOnly: true}
        {{- end }}
        {{- with $values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    {{- if ne .role "processor" }}
    - {name: data, emptyDir: {sizeLimit: 64Mi}}
    {{- end }}
    {{- if $secrets }}
    # The role's own secrets, and no other role's.
    - name: secrets
      projected:
        defaultMode: 0440
        sources:
          {{- if and .does.kafka $sasl }}
          - secret:
              name: {{ $values.kafka.secret }}
              items: [{key: {{ .role }}, path: kafka}]
          {{- end }}
          {{- if and .does.mqtt $values.mqtt.secret }}
          - secret:
              name: {{ $values.mqtt.secret }}
              items: [{key: {{ .role }}, path: mqtt}]
          {{- end }}
          {{- if .does.postgres }}
          - secret:
              name: {{ $values.postgres.secret }}
              items: [{key: {{ .role }}, path: dsn}]
          {{- end }}
          {{- if eq .role "odoo" }}
          - secret:
              name: {{ $values.odoo.secret }}
              items: [{key: odoo, path: odoo-key}]
          {{- end }}
          {{- if and $encrypted $values.ca.secret }}
          - secret:
              name: {{ $values.ca.secret }}
              items: [{key: {{ $values.ca.key }}, path: ca.pem}]
          {{- end }}
    {{- end }}
    {{- with $values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}
