"""Mistakes that the checks must find: each is a change of one file after which Terraform or cfn-lint has to refuse.

(what it is, the step that finds it, file, text, text in its place). A step is `test` (terraform test of the file's module, of one file of
tests where it is named, which also holds names and types to the schema), `plan` (of the example), `fmt` or `cfn`.
"""

MISTAKES = [
    ("a misspelt argument", "test shape", "provider/load_balancer.tf", "proxy_protocol_v2   ", "proxy_protocol_version2"),
    ("a number that is a text", "test shape", "provider/load_balancer.tf", "interval            = 10", 'interval            = "often"'),
    ("a required argument that is missing", "test shape", "provider/endpoint_service.tf", "  acceptance_required        = var.acceptance_required\n", ""),
    ("a kind of resource that is not there", "test shape", "provider/alarms.tf", '"aws_cloudwatch_metric_alarm" "ports"', '"aws_cloudwatch_alarm" "ports"'),
    ("a load balancer on the internet", "test shape", "provider/load_balancer.tf", "internal           = true", "internal           = false"),
    ("a load balancer made without its group", "test shape", "provider/load_balancer.tf", "[aws_security_group.nlb[0].id]\n  enforce", "[]\n  enforce"),
    ("an address of AWS's choice", "test shape", "provider/load_balancer.tf", "subnet_mapping.value.address", "null"),
    ("enforcement that is on by itself", "test shape", "provider/load_balancer.tf", '? "on" : "off"', '? "on" : "on"'),
    ("connection termination of unhealthy targets", "test shape", "provider/load_balancer.tf", "enable_unhealthy_connection_termination = false", "enable_unhealthy_connection_termination = true"),
    ("a draining interval of zero", "test shape", "provider/load_balancer.tf", "= var.deregistration_seconds\n  }", "= 0\n  }"),
    ("a short deregistration delay", "test shape", "provider/load_balancer.tf", "tostring(var.deregistration_seconds)", '"60"'),
    ("no PROXY header", "test shape", "provider/load_balancer.tf", "= each.value.proxy_protocol", "= false"),
    ("a PROXY header in front of NATS", "test shape", "provider/load_balancer.tf", "= each.value.proxy_protocol", "= true"),
    ("a listener that ends TLS", "test shape", "provider/load_balancer.tf", 'protocol          = "TCP"', 'protocol          = "TLS"'),
    ("a wide range to trust", "test shape", "provider/outputs.tf", "/32", "/24"),
    ("pods that everybody reaches", "test shape", "provider/load_balancer.tf", "referenced_security_group_id = aws_security_group.nlb[0].id", 'cidr_ipv4 = "10.0.0.0/8"'),
    ("a zone without data that is no alarm", "test shape", "provider/alarms.tf", '"breaching"', '"notBreaching"'),
    ("everybody as principal", "test refusals", "provider/variables.tf", '!contains(var.principals, "*")', "var.principals != null"),
    ("enforcement without ranges", "test refusals", "provider/variables.tf", "!var.enforce_rules_on_private_link || length(var.client_cidrs) > 0", "var.enforce_rules_on_private_link != null"),
    ("a load balancer that lets go first", "test refusals", "provider/variables.tf", "var.deregistration_seconds >= var.drain_delay_seconds &&", ""),
    ("an endpoint of the default kind", "test", "consumer/main.tf", '  vpc_endpoint_type  = "Interface"\n', ""),
    ("a rule of the wrong direction", "test", "consumer/main.tf", '"aws_vpc_security_group_ingress_rule" "groups"', '"aws_vpc_security_group_egress_rule" "groups"'),
    ("a zone in which the service is not", "test", "consumer/main.tf", "length(local.without) == 0", "length(local.without) >= 0"),
    ("another region that is not named", "test", "consumer/variables.tf", "coalesce(var.service_region, data.aws_region.here.region) ==", "var.service_region !="),
    ("an alias to one zone's name", "test", "consumer/main.tf", "name                   = aws_vpc_endpoint.relay.dns_entry[0]", "name                   = aws_vpc_endpoint.relay.dns_entry[1]"),
    ("a server that may make every queue", "test", "iam/main.tf", "${var.prefix}_reply_*", "${var.prefix}*"),
    ("an id in place of a name", "plan", "examples/two-accounts/main.tf", "module.provider.service_name", "module.provider.arn"),
    ("a subnet of the other account", "plan", "examples/two-accounts/main.tf", 'subnet_ids                = ["subnet-0bbbbbbbbbbbbbbb1"', 'subnet_ids                = ["subnet-0aaaaaaaaaaaaaaa1"'),
    ("an address of the other subnet", "plan", "examples/two-accounts/main.tf", 'address = "10.0.2.7"', 'address = "10.0.1.8"'),
    ("a file that is not formatted", "fmt", "iam/outputs.tf", "  value       =", "  value ="),
    ("a misspelt property", "cfn", "consumer/cloudformation.yaml", "PrivateDnsEnabled", "PrivateDNSEnabled"),
    ("a reference to nothing", "cfn", "consumer/cloudformation.yaml", "- !Ref EndpointGroup", "- !Ref Group"),
]
