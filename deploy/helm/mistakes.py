"""Mistakes that .ci/chart has to find: in the values of somebody who installs the chart, and in the chart itself."""

# (what it is, example, values on top of it, a word of helm's refusal)
IN_VALUES = [
    ("a misspelt key", "nats", "server: { replica: 3 }", "replica"),
    ("a misspelt key of a worker", "nats", "workers: { orders: { autoscalling: { kind: keda } } }", "autoscalling"),
    ("no image", "nats", "image: { repository: '' }", "image.repository"),
    ("a duration without a unit", "nats", "server: { drain: '30' }", "drain"),
    ("ports that disagree", "nats", "listeners: { cluster: { port: 7410 } }", "is taken by"),
    ("grace shorter than the drain", "nats", "server: { grace: 200 }", "server.grace"),
    ("a worker's grace shorter than its drain", "nats", "workers: { orders: { grace: 45 } }", "workers.orders.grace"),
    ("KEDA without a scaler", "nats", "scaler: { kind: none }", "nobody answers KEDA"),
    ("replicas beside KEDA", "nats", "workers: { orders: { replicas: 3 } }", "workers.orders.replicas"),
    ("more pods at least than at most", "nats", "workers: { orders: { autoscaling: { min: 30 } } }", "more than max"),
    ("a header that is believed from nobody", "nats", "listeners: { nlb: { trusted: [] } }", "listeners.nlb.trusted"),
    ("a load balancer without its listener", "nats", "listeners: { nlb: { enabled: false } }", "loadBalancer.kind"),
    ("an address of the load balancer that is not trusted", "sqs", "listeners: { nlb: { trusted: [10.0.1.7] } }", "10.0.2.7"),
    ("PROXY v2 for every port", "sqs", 'loadBalancer: { annotations: { service.beta.kubernetes.io/aws-load-balancer-proxy-protocol: "*" } }', "every port"),
    ("TLS without a certificate", "nats", "tls: { secret: '' }", "tls.secret"),
    ("client certificates without an authority", "nats", "listeners: { cluster: { clientAuth: required } }", "clientAuthorities"),
    ("two places for jobs", "nats", "persistence: { enabled: true }", "one place"),
    ("nobody is asked who they are", "nats", "access: { secret: '' }", "access.secret"),
    ("a queue that is not there", "nats", "workers: { orders: { queues: [order] } }", "has no `order`"),
    ("a worker without a handler", "nats", "workers: { orders: { command: [] } }", "workers.orders"),
    ("one line to read, and a queue with one of each client", "nats", "workers: { orders: { autoscaling: { trigger: nats-jetstream, nats: { monitoring: 'nats:8222' } } } }", "fair = false"),
    ("a trigger of SQS without its region", "sqs", "workers: { orders: { autoscaling: { sqs: { region: '' } } } }", "region"),
    ("workers that can't reach a store in the server", "single", "listeners: { workers: { enabled: false } }", "listeners.workers"),
    ("metrics without a token", "nats", "monitoring: { token: grafana }", "monitoring.token"),
    ("a table that the chart writes", "nats", "settings: { listen: { http: '0.0.0.0:7410' } }", "settings.listen"),
]  # fmt: skip

# (what it is, example, file of the chart, text, text in its place, a word of the finding)
IN_TEMPLATES = [
    ("a field that Kubernetes does not have", "nats", "templates/server.yaml", "maxSurge", "maxSurges", "maxSurges"),
    ("a field that KEDA does not have", "nats", "templates/scaling.yaml", "pollingInterval:", "pollInterval:", "pollInterval"),
    ("a key that the scaler does not know", "nats", "templates/scaling.yaml", "slotsPerWorker:", "slots:", "slots"),
    ("a binding of an old version", "nats", "templates/balancer.yaml", "v1beta1", "v1alpha1", "v1alpha1"),
    ("a readiness gate for another binding", "nats", "templates/server.yaml", "target-health.elbv2.k8s.aws/{{ $name }}", "target-health.elbv2.k8s.aws/{{ $name }}-nlb", "no pod waits"),
    ("a Service for pods that are not there", "nats", "templates/services.yaml", '"server" "scaler"', '"scaler" "server"', "no pod has its labels"),
    ("a port that the settings don't have", "nats", "templates/server.yaml", "containerPort: {{ $values.health.port }}", "containerPort: 7414", "are not those of its settings"),
    ("connections of a pod that drains are cut", "sqs", "templates/balancer.yaml", "unhealthy.connection_termination.enabled=false", "unhealthy.connection_termination.enabled=true", "are cut"),
    ("everybody may come to the listener that believes headers", "nats", "templates/network.yaml", "cidr: {{ contains", "cidr: 10.0.0.0/8 # {{ contains", "others than the load balancer"),
    ("KEDA may not come to the scaler", "nats", "templates/network.yaml", '(eq $values.scaler.kind "server")', '(eq $values.scaler.kind "separate")', "KEDA may not come"),
    ("a root that can be written", "nats", "templates/_names.tpl", "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false", "can be written"),
    ("a secret that is not mounted", "nats", "templates/_files.tpl", "mountPath: /etc/relay/tls", "mountPath: /etc/relay/certificate", "nothing is mounted"),
    ("a replica count beside KEDA", "nats", "templates/workers.yaml", 'if eq $of.autoscaling.kind "none"', "if true", "beside an autoscaler"),
    ("other slots than the worker has", "nats", "templates/scaling.yaml", "slotsPerWorker: {{ $of.slots | quote }}", 'slotsPerWorker: "10"', "counts 10 slots"),
    ("a worker's grace that ends with its drain", "nats", "templates/_names.tpl", '(include "relay.seconds" .drain) 15', '(include "relay.seconds" .drain) 0', "grace"),
]  # fmt: skip
