"""The configuration of Envoy as a network load balancer with two interface endpoints.

Each endpoint has a listener in its client's VPC and a cluster of its own, so that the header says which one a connection came
through. Behind endpoint `a` the header goes out together with the client's first bytes, as NLB has it by default, and behind `b` as
soon as the connection is made.
"""

import base64
import json

ENDPOINTS = {"a": "vpce-0a1b2c3d4e5f60718", "b": "vpce-0ffeeddccbbaa9988"}
# NLB closes a flow after 350 s without a byte.
IDLE = "350s"


def typed(kind, **fields):
    return {"@type": f"type.googleapis.com/envoy.{kind}", **fields}


def listener(name, address, port, space, cluster, idle, early):
    proxy = {"stat_prefix": name, "cluster": cluster, "idle_timeout": idle}
    if early:
        proxy |= {"upstream_connect_mode": "ON_DOWNSTREAM_DATA", "max_early_data_bytes": 16384}
    return {
        "name": name,
        "address": {"socket_address": {"address": address, "port_value": port, "network_namespace_filepath": space}},
        "filter_chains": [
            {
                "filters": [
                    {
                        "name": "envoy.filters.network.tcp_proxy",
                        "typed_config": typed("extensions.filters.network.tcp_proxy.v3.TcpProxy", **proxy),
                    }
                ]
            }
        ],
    }


RAW = {
    "name": "envoy.transport_sockets.raw_buffer",
    "typed_config": typed("extensions.transport_sockets.raw_buffer.v3.RawBuffer"),
}


def cluster(name, targets, port, check, endpoint_id=None):
    """Targets with their health checks. With an id, a PROXY header goes before each connection, and before each check."""
    made = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "2s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [
                {
                    "lb_endpoints": [
                        {
                            "endpoint": {
                                "address": {"socket_address": {"address": target, "port_value": port}},
                                "health_check_config": {"port_value": check["port"]},
                            }
                        }
                        for target in targets
                    ]
                }
            ],
        },
        "health_checks": [
            {
                "timeout": "1s",
                "interval": "0.5s",
                "unhealthy_threshold": 2,
                "healthy_threshold": 1,
                "no_traffic_interval": "0.5s",
                **check["check"],
            }
        ],
        # A target that is not healthy gets no new connection, and keeps those that it has.
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
    }
    if endpoint_id:
        tlv = base64.b64encode(b"\x01" + endpoint_id.encode()).decode()
        config = {"version": "V2", "added_tlvs": [{"type": 0xEA, "value": tlv}]}
        header = typed(
            "extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport", config=config, transport_socket=RAW
        )
        made["transport_socket"] = {"name": "envoy.transport_sockets.upstream_proxy_protocol", "typed_config": header}
    return made


def configuration(spaces, endpoint, relays, relay_ports, health_port, broker, idle=IDLE):
    """For endpoints in the namespaces `spaces`, by client, each of whose ports leads to one of relay's."""
    ready = {"port": health_port, "check": {"http_health_check": {"path": "/readyz"}}}
    open_port = {"port": 4222, "check": {"tcp_health_check": {}}}
    listeners, clusters = [], [cluster("nats", [broker], 4222, open_port)]
    for client, space in spaces.items():
        for port, behind in relay_ports.items():
            name = f"relay-{client}-{port}"
            listeners.append(listener(name, endpoint, port, space, name, idle, early=client == "a"))
            clusters.append(cluster(name, relays, behind, ready, ENDPOINTS[client]))
        # NATS speaks first: no header, and the connection is made at once.
        listeners.append(listener(f"{client}-nats", endpoint, 4222, space, "nats", idle, early=False))
    return json.dumps(
        {
            "static_resources": {"listeners": listeners, "clusters": clusters},
            "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 9901}}},
        }
    )
