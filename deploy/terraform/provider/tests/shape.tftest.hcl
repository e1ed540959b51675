# The shape of everything that is made: each run is a promise of the module.

mock_provider "aws" {
  mock_data "aws_subnet" {
    defaults = { vpc_id = "vpc-0aaaaaaaaaaaaaaa1", cidr_block = "10.0.0.0/16" }
  }
  mock_resource "aws_vpc_endpoint_service" {
    defaults = { private_dns_name_configuration = [{ name = "_proof", value = "vpce:proof" }] }
  }
  mock_data "aws_lb" {
    defaults = { internal = true, subnet_mapping = [{ private_ipv4_address = "10.0.9.9" }, { private_ipv4_address = "" }] }
  }
}

override_data {
  target = data.aws_subnet.each["a"]
  values = { id = "subnet-0aaaaaaaaaaaaaaa1", vpc_id = "vpc-0aaaaaaaaaaaaaaa1", cidr_block = "10.0.1.0/24", availability_zone = "eu-central-1a", availability_zone_id = "euc1-az2" }
}

override_data {
  target = data.aws_subnet.each["b"]
  values = { id = "subnet-0aaaaaaaaaaaaaaa2", vpc_id = "vpc-0aaaaaaaaaaaaaaa1", cidr_block = "10.0.2.0/24", availability_zone = "eu-central-1b", availability_zone_id = "euc1-az3" }
}

variables {
  vpc_id = "vpc-0aaaaaaaaaaaaaaa1"
  subnets = {
    a = { subnet_id = "subnet-0aaaaaaaaaaaaaaa1", address = "10.0.1.7" }
    b = { subnet_id = "subnet-0aaaaaaaaaaaaaaa2", address = "10.0.2.7" }
  }
  listeners = {
    data = { port = 443, target_port = 7410 }
    nats = { port = 4222, target_port = 4222, proxy_protocol = false, server_speaks_first = true }
  }
  target_security_group_id = "sg-0aaaaaaaaaaaaaaa1"
  principals               = ["arn:aws:iam::222222222222:root"]
}

run "the_load_balancer_is_internal_with_fixed_addresses_and_a_group_from_the_start" {
  assert {
    condition     = aws_lb.relay[0].internal && aws_lb.relay[0].load_balancer_type == "network"
    error_message = "the load balancer is not internal, or not of the network kind"
  }
  assert {
    condition     = aws_lb.relay[0].security_groups == toset([aws_security_group.nlb[0].id])
    error_message = "the load balancer is made without its group, and can never get one"
  }
  assert {
    condition     = toset([for mapping in aws_lb.relay[0].subnet_mapping : mapping.private_ipv4_address]) == toset(["10.0.1.7", "10.0.2.7"])
    error_message = "the load balancer does not take the addresses that were chosen for it"
  }
  assert {
    condition     = aws_lb.relay[0].enforce_security_group_inbound_rules_on_private_link_traffic == "off"
    error_message = "enforcement is on although nobody named clients' ranges: every client would be refused"
  }
  assert {
    condition     = aws_lb.relay[0].enable_deletion_protection
    error_message = "a destroy by mistake would take every client's way to relay"
  }
}

run "only_the_load_balancers_own_addresses_are_to_be_trusted" {
  assert {
    condition     = output.proxy_trusted == tolist(["10.0.1.7/32", "10.0.2.7/32"])
    error_message = "proxy_trusted is not the load balancer's addresses, each as /32"
  }
}

run "a_pod_that_drains_keeps_its_connections" {
  assert {
    condition     = alltrue([for group in aws_lb_target_group.each : !group.target_health_state[0].enable_unhealthy_connection_termination])
    error_message = "AWS resets the connections of a target as soon as it is unhealthy, which one that drains is on purpose"
  }
  assert {
    condition     = alltrue([for group in aws_lb_target_group.each : group.target_health_state[0].unhealthy_draining_interval >= var.drain_delay_seconds])
    error_message = "the draining interval of unhealthy targets is shorter than relay's drain delay"
  }
  assert {
    condition     = alltrue([for group in aws_lb_target_group.each : tonumber(group.deregistration_delay) >= var.drain_delay_seconds])
    error_message = "the deregistration delay is shorter than relay's drain delay"
  }
  assert {
    condition     = alltrue([for group in aws_lb_target_group.each : group.connection_termination])
    error_message = "connections to a target that left are never cut, and end as timeouts"
  }
}

run "the_header_says_who_the_client_is_where_relay_reads_it" {
  assert {
    condition     = aws_lb_target_group.each["data"].proxy_protocol_v2
    error_message = "without a PROXY header relay can't tell endpoints apart"
  }
  assert {
    condition     = !aws_lb_target_group.each["nats"].proxy_protocol_v2
    error_message = "a PROXY header in front of NATS makes both sides wait for ever"
  }
  assert {
    condition     = alltrue([for group in aws_lb_target_group.each : group.preserve_client_ip == "false" && group.target_type == "ip"])
    error_message = "targets are addresses of pods, and do not see the client's address"
  }
}

run "each_listener_forwards_to_its_own_group" {
  assert {
    condition     = alltrue([for name, listener in aws_lb_listener.each : listener.default_action[0].target_group_arn == aws_lb_target_group.each[name].arn && listener.protocol == "TCP"])
    error_message = "a listener forwards elsewhere, or ends TLS: mutual TLS needs TCP"
  }
  assert {
    condition     = alltrue([for listener in aws_lb_listener.each : listener.tcp_idle_timeout_seconds == null || listener.tcp_idle_timeout_seconds == 350 || listener.tcp_idle_timeout_seconds == 0])
    error_message = "an idle timeout of its own keeps clients of other regions out"
  }
}

run "pods_are_reached_from_the_load_balancers_group_alone" {
  assert {
    condition     = alltrue([for rule in aws_vpc_security_group_ingress_rule.targets : rule.referenced_security_group_id == aws_security_group.nlb[0].id && rule.cidr_ipv4 == null && rule.security_group_id == var.target_security_group_id])
    error_message = "somebody beside the load balancer may reach relay's ports, and forge a PROXY header"
  }
  assert {
    condition     = toset([for rule in aws_vpc_security_group_ingress_rule.targets : rule.to_port]) == toset([7410, 4222, 7413]) && toset([for rule in aws_vpc_security_group_egress_rule.targets : rule.to_port]) == toset([7410, 4222, 7413])
    error_message = "the load balancer's way to a target port is not open on both sides"
  }
  assert {
    condition     = length(aws_vpc_security_group_ingress_rule.clients) == 0
    error_message = "the load balancer lets somebody in whom nobody named"
  }
}

run "endpoints_wait_for_acceptance_and_are_of_named_principals" {
  variables {
    accepted_endpoints = ["vpce-0123456789abcdef0"]
  }
  assert {
    condition     = aws_vpc_endpoint_service.relay.acceptance_required && aws_vpc_endpoint_service.relay.network_load_balancer_arns == toset([aws_lb.relay[0].arn])
    error_message = "the service takes every endpoint, or is not in front of the load balancer"
  }
  assert {
    condition     = [for allowed in aws_vpc_endpoint_service_allowed_principal.each : allowed.principal_arn] == ["arn:aws:iam::222222222222:root"]
    error_message = "somebody else than the principals may create an endpoint"
  }
  assert {
    condition     = aws_vpc_endpoint_connection_accepter.each["vpce-0123456789abcdef0"].vpc_endpoint_service_id == aws_vpc_endpoint_service.relay.id
    error_message = "an accepted endpoint is not accepted"
  }
}

run "a_zone_that_serves_nobody_is_an_alarm_also_when_it_says_nothing" {
  assert {
    condition     = length(aws_cloudwatch_metric_alarm.no_healthy_target) == 4
    error_message = "there is not one alarm for each listener in each zone"
  }
  assert {
    condition     = alltrue([for alarm in aws_cloudwatch_metric_alarm.no_healthy_target : alarm.treat_missing_data == "breaching" && alarm.threshold == 1 && alarm.comparison_operator == "LessThanThreshold"])
    error_message = "a zone without targets has no data, and would be no alarm"
  }
  assert {
    condition     = toset([for alarm in aws_cloudwatch_metric_alarm.no_healthy_target : alarm.dimensions.AvailabilityZone]) == toset(["eu-central-1a", "eu-central-1b"])
    error_message = "the alarms do not name the zones as CloudWatch does"
  }
  assert {
    condition     = aws_cloudwatch_metric_alarm.ports[0].metric_name == "PortAllocationErrorCount" && aws_cloudwatch_metric_alarm.blocked[0].metric_name == "SecurityGroupBlockedFlowCount_Inbound_TCP"
    error_message = "ports that run out, or flows that are blocked, are no alarm"
  }
}

run "the_domain_is_proven_in_its_public_zone" {
  variables {
    private_dns_name = "relay.example.com"
    public_zone_id   = "Z0123456789"
  }
  assert {
    condition     = aws_route53_record.verification[0].type == "TXT" && endswith(aws_route53_record.verification[0].name, ".relay.example.com")
    error_message = "the TXT record is not below the name that it proves"
  }
}

run "a_load_balancer_of_somebody_else_is_left_as_it_is" {
  variables {
    nlb_arn = "arn:aws:elasticloadbalancing:eu-central-1:111111111111:loadbalancer/net/relay/0123456789abcdef"
    subnets = {}
  }
  assert {
    condition     = length(aws_lb.relay) + length(aws_lb_listener.each) + length(aws_lb_target_group.each) + length(aws_security_group.nlb) + length(aws_cloudwatch_metric_alarm.no_healthy_target) == 0
    error_message = "the module makes parts of a load balancer that it was given"
  }
  assert {
    condition     = aws_vpc_endpoint_service.relay.network_load_balancer_arns == toset([var.nlb_arn]) && output.proxy_trusted == tolist(["10.0.9.9/32"])
    error_message = "the service is not in front of the given load balancer, or its addresses are not told"
  }
}

run "ports_that_two_listeners_share_have_one_rule_and_health_has_its_own" {
  variables {
    listeners = {
      data  = { port = 443, target_port = 7410 }
      other = { port = 8443, target_port = 7410 }
      nats  = { port = 4222, target_port = 4222, proxy_protocol = false, server_speaks_first = true }
    }
  }
  assert {
    condition     = toset([for rule in aws_vpc_security_group_ingress_rule.targets : rule.to_port]) == toset([4222, 7410, 7413])
    error_message = "the port of health checks is not open, or one port has two rules"
  }
  assert {
    condition     = alltrue([for name in ["data", "other"] : aws_lb_target_group.each[name].health_check[0].protocol == "HTTP" && aws_lb_target_group.each[name].health_check[0].path == "/readyz" && aws_lb_target_group.each[name].health_check[0].matcher == "200" && aws_lb_target_group.each[name].health_check[0].port == "7413"])
    error_message = "health checks do not ask /readyz: a pod that drains would stay in the load balancer"
  }
  assert {
    condition     = aws_lb_target_group.each["nats"].health_check[0].protocol == "TCP" && aws_lb_target_group.each["nats"].health_check[0].port == "traffic-port"
    error_message = "servers of NATS are asked for what only relay answers"
  }
}

run "health_checks_may_connect_to_the_listeners_port" {
  variables {
    health_check = null
  }
  assert {
    condition     = alltrue([for group in aws_lb_target_group.each : group.health_check[0].protocol == "TCP" && group.health_check[0].port == "traffic-port"])
    error_message = "the check does not go to the port of the listener"
  }
  assert {
    condition     = toset([for rule in aws_vpc_security_group_ingress_rule.targets : rule.to_port]) == toset([4222, 7410])
    error_message = "a port is open that nobody asks"
  }
}
